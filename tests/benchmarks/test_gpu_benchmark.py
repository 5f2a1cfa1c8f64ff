"""The GPU benchmarks at a tiny size on a CPU, with only the packages of a GPU machine; limits; the probe."""

import json
import os
import re
import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from sklearn.linear_model import LogisticRegression

from benchmarks.gpu.linear_probe import Features, fit
from tests.igpt_model.training.test_loop import digits_snapshot

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "numpy", "pyarrow", "pillow", "safetensors", "scikit-learn")


def with_dependencies(names: tuple[str, ...]) -> set[str]:
    """Distributions, and all that they need here, by their normalized names."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = normalized(waiting.pop())
        if name in found:
            continue
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # not for this platform, or this build of torch
        found.add(name)
        requirements = map(Requirement, needed)
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def gpu_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with the packages of a GPU machine alone, linked to those installed here."""
    folder = tmp_path_factory.mktemp("machine") / "venv"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in with_dependencies(PACKAGES):
        files = distribution(name).files
        assert files, name
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command for a CPU."""
    command = [str(python), "-m", "benchmarks.gpu", "--out", str(folder / "out"), "--device", "cpu", *arguments]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment = {**kept, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment, timeout=850)


def test_the_environment_has_these_packages_alone(gpu_machine: Path) -> None:
    look = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    done = subprocess.run([str(gpu_machine), "-c", look], capture_output=True, text=True, cwd="/", check=True)
    assert {normalized(name) for name in done.stdout.split()} == with_dependencies(PACKAGES)
    for missing in ("ray", "boto3", "psutil", "matplotlib", "transformers", "pipeline"):
        assert (
            subprocess.run([str(gpu_machine), "-c", f"import {missing}"], capture_output=True, cwd="/").returncode == 1
        )


@pytest.mark.programs
@pytest.mark.needs("compiler")
def test_every_part_is_rehearsed_on_a_cpu(gpu_machine: Path, tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path / "data", samples_per_shard=300, test_fraction=0.2)
    fields = ("layers=2", "width=32", "global_batch=16", "learning_rate=0.003")
    done = run(gpu_machine, tmp_path, "--dataset", data.dataset, "--minutes", "0.02", "--limit", "800", *fields)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [part["part"] for part in results["parts"]] == ["correctness", "speed", "drawing", "pretraining"]
    assert not any(part["error"] for part in results["parts"])
    tables = results["tables"]
    checked = tables["Losses and gradients against float64 on the CPU"]
    assert all(row["of the gradient"] < (1e-5 if "float32" in row["computed in"] else 0.02) for row in checked)
    assert [row["graphs"] for row in checked if "compiled" in row["computed in"]] == [1, 1]
    assert tables["Drawn pixels against those that float64 gives after the same pixels"][0]["same pixels"] == "100.00%"
    steps = tables["Whole optimizer steps in bfloat16"]
    assert [row["contender"] for row in steps if "error" in row] == ["Hugging Face"]
    assert all(row["images/s"] > 0 for row in steps if "error" not in row)
    assert tables["Pretraining"][0]["layers, width, heads"] == "2, 32, 4"
    assert [row["layer"] for row in tables["Linear probe by layer"] if row["network"] == "trained"] == [0, 1, 2]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"samples.png", "completions.png"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert all(f"\n## {title}\n" in report for title in tables)


def test_a_part_that_takes_too_long_is_ended_and_the_next_has_its_turn(gpu_machine: Path, tmp_path: Path) -> None:
    done = run(gpu_machine, tmp_path, "--parts", "correctness", "drawing", "--limit", "0.1")
    assert done.returncode == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [part["error"] for part in results["parts"]] == ["was ended after its limit of 0.1 s"] * 2


def test_the_probe_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    features = random.normal(size=(1, 400, 6)).astype(np.float32) + 0.7 * np.eye(3, 6)[labels].astype(np.float32)

    def part(rows: slice) -> Features:
        return Features(
            features_LNC=torch.from_numpy(features[:, rows]), labels_N=torch.from_numpy(labels[rows].astype(np.int64))
        )

    train, validation, test = slice(0, 200), slice(200, 300), slice(300, 400)
    for strength in (0.003, 0.3):
        score = fit(part(train), part(validation), part(test), 0, [strength], 200)
        mean, scale = features[0, train].mean(0), features[0, train].std(0) + 1e-6
        theirs = LogisticRegression(C=strength, max_iter=1000, tol=1e-8).fit(
            (features[0, train] - mean) / scale, labels[train]
        )
        expected = [theirs.score((features[0, rows] - mean) / scale, labels[rows]) for rows in (validation, test)]
        assert [score.validation_accuracy, score.test_accuracy] == pytest.approx(expected, abs=0.011)
        assert score.strength == strength
