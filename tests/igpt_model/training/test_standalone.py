"""Training without services: `python -m igpt_model.train`, as one process and under torchrun."""

import json
import re
from pathlib import Path

import pytest

from tests.igpt_model.test_train import run

pytestmark = pytest.mark.programs

# Hides the packages that a machine that only trains does not need.
BARE = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow", "prefect", "s3fs", "pydantic", "boto3", "typer", "rich", "flows"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Block())
runpy.run_module("igpt_model.train", run_name="__main__")
"""


def result_in(folder: Path) -> dict:
    (path,) = folder.rglob("result.json")
    return json.loads(path.read_text())


def test_it_trains_by_itself_and_finds_a_finished_run_again(path: Path, tmp_path: Path) -> None:
    first = run("-c", BARE, str(path), "steps=20", "name=alone")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "step 10  train_loss " in first.stdout
    result = result_in(tmp_path / "runs" / "alone")
    assert (result["steps"], result["images"]) == (20, 320)
    again = run("-c", BARE, str(path), "steps=20", "name=alone")
    assert again.returncode == 0
    assert len(again.stdout.splitlines()) == 1 and "after 20 steps" in again.stdout
    longer = run("-c", BARE, str(path), "steps=30", "name=alone")
    assert "step 20  " not in longer.stdout
    assert result_in(tmp_path / "runs" / "alone")["restarts"] == 1


def test_workers_of_torchrun_train_as_one_does(path: Path, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "igpt_model.train"]
    two = run(*launch, str(path), "name=two", "micro_batch=3", "ema_decay=0.9")
    assert two.returncode == 0, two.stdout + two.stderr
    one = run("-m", "igpt_model.train", str(path), "name=one", "ema_decay=0.9")
    assert one.returncode == 0, one.stderr
    of_two, of_one = (result_in(tmp_path / "runs" / name) for name in ("two", "one"))
    assert (of_two["steps"], of_two["images"]) == (of_one["steps"], of_one["images"]) == (30, 480)
    assert of_two["validation_loss"] == pytest.approx(of_one["validation_loss"], abs=1e-4)
    steps = re.findall(r"^step (\d+)", two.stdout, re.MULTILINE)
    assert steps == ["10", "15", "20", "30"]  # only rank 0 prints
