"""Training without services: `python -m igpt_model.train`, as one process and under torchrun."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from igpt_model.train import main
from pipeline.dataset.snapshot import Snapshot
from tests.igpt_model.training.test_loop import digits_snapshot, short_training

ROOT = Path(__file__).parents[3]
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return digits_snapshot(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def path(data: Snapshot, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(short_training(data, tmp_path))))
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300
    )


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


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stepz=3", "unknown field stepz"),
        ("steps=many", "optimizer.steps is 'many': it must be a whole number"),
        ("steps=1.5", "optimizer.steps is '1.5': it must be a whole number"),
        ("flip=1", "data.flip is '1': it must be true or false"),
        ("preset=gpt-5", "model.preset is 'gpt-5': it must be tiny or"),
        ("global_batch=0", "global_batch is 0: it must be at least 1"),
        ("steps", "'steps' is not an override"),
        ("dataset=", "dataset is empty"),
        pytest.param(
            "use_gpu=true",
            "PyTorch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="platform: this machine has a GPU"),
        ),
    ],
)
def test_each_mistake_is_one_line(
    override: str, expected: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["igpt_model.train", str(path), override])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert_one_line(capsys.readouterr().err, expected)
    assert not (path.parent / "runs").exists()


def assert_one_line(err: str, expected: str) -> None:
    (line,) = err.splitlines()
    assert line.startswith("igpt: ")
    assert expected in line


def test_a_process_with_bad_input_exits_with_two(path: Path) -> None:
    ended = run("-m", "igpt_model.train", str(path), "dataset=/no/such/place")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert_one_line(ended.stderr, "no dataset snapshot there")
