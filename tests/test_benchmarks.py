"""The benchmarks run, at a size that measures nothing, and count operations and bytes rightly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measure_device import ratio
from benchmarks.sample import bytes_read
from benchmarks.train_step import Setting, contenders, show_profile
from igpt_model.config import PretrainConfig
from igpt_model.model_config import ModelConfig
from tests.test_train import digits_snapshot

ROOT = Path(__file__).parent.parent
TINY = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=512)


def run(module: str, output: Path, *arguments: str) -> list[dict]:
    """The rows that a benchmark writes."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--output", str(output), "--rounds", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert output.with_suffix(".md").read_text() in done.stdout
    content = json.loads(output.with_suffix(".json").read_text())
    assert {"cpu", "threads", "packages", "load_average_before"} <= set(content["machine"])
    return content["rows"]


def test_training(tmp_path: Path) -> None:
    shape = ("--layers", "2", "--width", "32", "--heads", "4", "--resolution", "8", "--batches", "2", "--threads", "1")
    rows = run("train_step", tmp_path / "a", *shape)
    assert [row["contender"] for row in rows] == ["ours", "ours compiled", "Hugging Face"]
    assert all(row["images/s"] > 0 and len(row["seconds"]) == 2 for row in rows)
    rows = run("train_step", tmp_path / "b", *shape, "--whole-steps", "--precision", "bfloat16")  # as on a GPU
    assert [row["contender"] for row in rows] == ["ours compiled", "ours", "nanoGPT-style compiled", "Hugging Face"]


def test_steps_of_every_batch_size_run_kernels_for_that_size() -> None:
    config = PretrainConfig(runs="r", preset="tiny")
    for batch in (2, 3):
        setting = Setting(model=TINY, batch=batch, device=torch.device("cpu"), config=config, optimizer=True)
        with torch._dynamo.config.patch(error_on_recompile=True):  # anew would be: for any size
            for step in contenders(setting, ["ours compiled", "nanoGPT-style compiled"]).values():
                step()


def test_drawing(tmp_path: Path) -> None:
    arguments = ("--layers", "2", "--width", "32", "--heads", "4", "--resolutions", "4", "--batches", "2", "--compile")
    for precision in ("float32", "bfloat16"):
        rows = run("sample", tmp_path / precision, *arguments, "--precision", precision)
        assert [row["contender"] for row in rows] == ["ours", "Hugging Face", "ours compiled"]


def test_loading(tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path, samples_per_shard=300)
    rows = run("loader", tmp_path / "loader", "--dataset", data.dataset, "--steps", "3")
    assert [row["contender"].split(",")[0] for row in rows[:4]] == ["ours", "ours", "webdataset", "webdataset"]
    assert rows[0]["images/s"] > 10 * rows[2]["images/s"]
    assert rows[4]["times longer than ours"].endswith("% of the step")


def test_quality(tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path, samples_per_shard=300, test_fraction=0.2)
    command = [sys.executable, "-m", "benchmarks.quality", "--dataset", data.dataset, "--run", str(tmp_path / "run")]
    arguments = ["--minutes", "0.02", "--preset", "tiny", "--batch", "16", "--output", str(tmp_path / "quality")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert [row["layer"] for row in rows] == list(range(7))
    assert all(0.1 < float(row["test accuracy, trained"].rstrip("%")) / 100 <= 1 for row in rows)
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"samples.png", "completions.png"}


def test_benchmarks_of_the_model_need_no_more_than_a_gpu_machine_has() -> None:
    """Torch, numpy, pyarrow, pillow, safetensors and scikit-learn."""
    missing = ("transformers", "psutil", "boto3", "botocore", "matplotlib", "ray", "mlflow", "s3fs", "pydantic", "yaml")
    code = f"""
import sys
sys.modules |= dict.fromkeys({missing!r})
from benchmarks import quality, sample, train_step
from benchmarks.measure_device import machine
print(machine(sample.torch.device("cpu"))["packages"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


def test_bytes_are_those_of_weights_and_cache() -> None:
    short = ModelConfig(layers=1, width=4, heads=1, resolution=1, colours=3)
    weights = 12 * 16 + 3 * 4
    assert bytes_read(short, 5, torch.float32) == 4 * (weights + 5 * 2 * 4)
    longer = ModelConfig(layers=1, width=4, heads=1, resolution=2, colours=3)
    assert bytes_read(longer, 5, torch.bfloat16) == 2 * (4 * weights + 5 * 2 * 4 * (1 + 2 + 3 + 4))


def test_ratios_are_taken_round_by_round() -> None:
    found = ratio([2.0, 40.0, 6.0], [1.0, 10.0, 3.0])
    assert (found.median, found.tenth, found.ninetieth, found.of_fastest) == (2.0, 2.0, 4.0, 2.0)


def test_the_profile_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    config = PretrainConfig(runs="r", preset="tiny")
    setting = Setting(model=TINY, batch=2, device=torch.device("cpu"), config=config, optimizer=True)
    assert list(contenders(setting, ["ours"])) == ["ours"]
    show_profile(setting, "ours")
    assert "Self CPU" in capsys.readouterr().out
