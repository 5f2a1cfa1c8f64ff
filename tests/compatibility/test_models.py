"""A version that earlier code registered loads, answers and serves as before, whatever modules are imported already."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compatibility.earlier import ROOT, copy, read_json
from tests.rigs.environments import without_us

pytestmark = pytest.mark.programs

EXPECTED = read_json("answers.json")
# Each list: what a process has imported when it loads the version.
IMPORTED = (
    [],
    ["igpt_model"],
    ["pipeline"],
    ["pipeline.images.decode", "pipeline.dataset.snapshot"],
    ["igpt_model.worker"],
    ["igpt_model.registered"],
    ["igpt_model.runs.open_model"],
    ["igpt_model.registry.register"],
)
PROGRAM = """
import importlib, json, sys
import mlflow, numpy as np
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server

folder, images, *cases = json.load(sys.stdin)
images = np.array(images, np.uint8)
path, answers = list(sys.path), []
for modules in cases:
    for name in [name for name in sys.modules if name.split(".")[0] in ("igpt_model", "pipeline")]:
        del sys.modules[name]
    sys.path[:] = path
    for name in modules:
        importlib.import_module(name)
    model = mlflow.pyfunc.load_model(folder)
    answers.append({
        "features": model.predict(images).tolist(),
        "all_layers": model.predict(images, params={"all_layers": True}).tolist(),
        "score": model.predict(images, params={"task": "score"}).tolist(),
        "classify": model.predict(images, params={"task": "classify"}).to_dict("list"),
        "drawn": [list(model.predict(images, params={"task": task}).shape) for task in ("complete", "sample")],
        "code": sys.modules["igpt_model.registered"].__file__,
    })
client = TestClient(scoring_server.init(model))
asked = {"inputs": images.tolist(), "params": {"task": "score"}}
answers[-1]["served"] = client.post("/invocations", json=asked).json()["predictions"]
print(json.dumps(answers))
"""


def ask(python: Path | str, folder: Path, cases: tuple[list[str], ...], **environment: str) -> list[dict[str, Any]]:
    """What the version answers in a process of its own, once for each case."""
    done = subprocess.run(
        [str(python), "-c", PROGRAM],
        input=json.dumps([str(folder / "model"), EXPECTED["images"], *cases]),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(answers: dict[str, Any]) -> None:
    for name in ("features", "all_layers", "score"):
        assert np.array(answers[name]) == pytest.approx(np.array(EXPECTED[name]), abs=1e-5)
    assert list(answers["classify"]) == list(EXPECTED["classify"])
    for label, probabilities in EXPECTED["classify"].items():
        assert answers["classify"][label] == pytest.approx(probabilities, abs=1e-5)
    assert answers["drawn"] == [[3, 1, 8, 8, 3], [1, 8, 8, 3]]


def test_it_loads_and_serves_where_nothing_of_ours_is_installed(tmp_path: Path) -> None:
    programs = without_us(tmp_path / "environment")
    (answers,) = ask(programs / "python", copy(tmp_path, "model"), ([],), PYTHONPATH="")
    check(answers)
    assert answers["served"] == pytest.approx(EXPECTED["score"], abs=1e-5)
    assert Path(answers["code"]).is_relative_to(tmp_path / "model" / "code")


def test_it_loads_and_serves_whatever_of_ours_is_imported(tmp_path: Path) -> None:
    processes = ask(sys.executable, copy(tmp_path, "model"), IMPORTED, PYTHONPATH=str(ROOT))
    for answers, modules in zip(processes, IMPORTED, strict=True):
        check(answers)
        # What is imported stays: a process has one `igpt_model`.
        ours = ROOT / "igpt_model" if modules else tmp_path / "model" / "code"
        assert Path(answers["code"]).is_relative_to(ours), modules
    assert processes[-1]["served"] == pytest.approx(EXPECTED["score"], abs=1e-5)
