"""The benchmarks run at a tiny size, and count operations and bytes correctly."""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import measure, passes, recipes
from benchmarks.measure_device import ratio
from benchmarks.sample import bytes_read
from benchmarks.train_step import Setting, contenders, show_profile
from igpt_model.config import PretrainConfig
from igpt_model.model.config import ModelConfig
from tests.igpt_model.training.test_loop import digits_snapshot

ROOT = Path(__file__).parents[2]
TINY = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=512)


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """Runs benchmarks in this process, which has loaded what they need."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def rows(self, module: str, output: Path, *arguments: str) -> list[dict]:
        """The rows that a benchmark writes."""
        self.monkeypatch.setattr(sys, "argv", [module, "--output", str(output), *arguments])
        import_module(f"benchmarks.{module}").main()
        return written(output, self.capfd.readouterr().out)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Benchmarks:
    return Benchmarks(monkeypatch=monkeypatch, capfd=capfd)


def written(output: Path, out: str) -> list[dict]:
    """The rows of the files that a benchmark wrote, after checks of the other fields."""
    assert output.with_suffix(".md").read_text() in out
    content = json.loads(output.with_suffix(".json").read_text())
    assert {"cpu", "threads", "packages", "load_average_before"} <= set(content["machine"])
    return content["rows"]


SHAPE = ("--layers", "2", "--width", "32", "--heads", "4", "--batches", "2", "--rounds", "2")


@pytest.mark.programs
@pytest.mark.needs("compiler")
def test_training(benchmarks: Benchmarks, tmp_path: Path) -> None:
    shape = (*SHAPE, "--resolution", "8", "--threads", "1")
    rows = benchmarks.rows("train_step", tmp_path / "a", *shape)
    assert [row["contender"] for row in rows] == ["ours", "ours compiled", "Hugging Face"]
    assert all(row["images/s"] > 0 and len(row["seconds"]) == 2 for row in rows)
    whole_steps = ("--whole-steps", "--precision", "bfloat16")  # as on a GPU
    rows = benchmarks.rows("train_step", tmp_path / "b", *shape, *whole_steps)
    assert [row["contender"] for row in rows] == ["ours compiled", "ours", "nanoGPT-style compiled", "Hugging Face"]


@pytest.mark.needs("compiler")
def test_steps_of_every_batch_size_run_kernels_for_that_size() -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny")
    for batch in (2, 3):
        setting = Setting(model=TINY, batch=batch, device=torch.device("cpu"), config=config, optimizer=True)
        with torch._dynamo.config.patch(error_on_recompile=True):  # a recompilation would be for any size
            for step in contenders(setting, ["ours compiled", "nanoGPT-style compiled"]).values():
                step()


@pytest.mark.needs("compiler")
def test_drawing(benchmarks: Benchmarks, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        arguments = (*SHAPE, "--resolutions", "4", "--compile", "--precision", precision)
        rows = benchmarks.rows("sample", tmp_path / precision, *arguments)
        assert [row["contender"] for row in rows] == ["ours", "Hugging Face", "ours compiled"]


@pytest.mark.programs
def test_loading(tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path, samples_per_shard=300)
    arguments = ["--dataset", data.dataset, "--steps", "3", "--rounds", "2", "--output", str(tmp_path / "loader")]
    command = [sys.executable, "-m", "benchmarks.loader", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = written(tmp_path / "loader", done.stdout)
    names = [row["contender"].split(",")[0] for row in rows[:6]]
    assert names == ["ours", "ours", "torch dataset", "torch dataset", "webdataset", "webdataset"]
    assert rows[0]["images/s"] > 10 * rows[4]["images/s"]
    assert rows[6]["times longer than ours"].endswith("% of the step")


@pytest.mark.programs
def test_quality(benchmarks: Benchmarks, tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path, samples_per_shard=300, test_fraction=0.2)
    arguments = ("--minutes", "0.02", "--preset", "tiny", "--batch", "16", "--run", str(tmp_path / "run"))
    rows = benchmarks.rows("quality", tmp_path / "quality", "--dataset", data.dataset, *arguments)
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
    result = ratio([2.0, 40.0, 6.0], [1.0, 10.0, 3.0])
    assert (result.median, result.tenth, result.ninetieth, result.of_fastest) == (2.0, 2.0, 4.0, 2.0)


def test_the_profile_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny")
    setting = Setting(model=TINY, batch=2, device=torch.device("cpu"), config=config, optimizer=True)
    assert list(contenders(setting, ["ours"])) == ["ours"]
    show_profile(setting, "ours")
    assert "Self CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("curve", "share"),
    [
        ({10: 3.0, 20: 2.0, 30: 1.0}, 25 / 30),
        ({10: 1.5, 20: 1.2}, 10 / 20),
        ({10: 3.0, 20: 2.5, 40: 1.0}, (20 + 20 * 2 / 3) / 40),
        ({10: 3.0, 20: 2.5}, float("inf")),
    ],
)
def test_a_curve_is_followed_until_a_loss(curve: dict[int, float], share: float) -> None:
    assert recipes.share_until(1.5, curve) == pytest.approx(share)


def test_passes_are_compared_by_cpu_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "SHAPES", {"tiny": (TINY, 4)})
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["passes", "--rounds", "2"])
    threads = torch.get_num_threads()
    passes.main()
    torch.set_num_threads(threads)
    shape = json.loads((tmp_path / "passes.json").read_text())["shapes"]["tiny"]
    assert {name: set(value) for name, value in shape["bounded / unbounded"].items()} == {
        name: {"median", "min", "max"} for name in ("features", "scores")
    }
    assert all(rate["median"] > 0 for rate in shape["images_per_cpu_second"].values())


def test_recipes_are_compared_by_their_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits_snapshot(tmp_path / "data", samples_per_shard=300)
    asked = ["--dataset", data.dataset, "--out", str(tmp_path / "out"), "--steps", "40"]
    common = ["--common", "preset=tiny", "layers=1", "width=32", "global_batch=16", f"cache={tmp_path / 'cache'}"]
    given = ["optim=adam,learning_rate=0.001", "optim=muon,learning_rate=0.02"]
    monkeypatch.setattr(sys, "argv", ["recipes", *given, *asked, *common])
    recipes.main()
    tables = json.loads((tmp_path / "out" / "results.json").read_text())["tables"]
    losses = {row["recipe"]: row["validation, nats per pixel"] for row in tables["Recipes"]}
    assert list(losses) == ["optim=adam learning_rate=0.001", "optim=muon learning_rate=0.02"]
    assert [row["step"] for row in tables["Losses"]] == 2 * list(range(4, 41, 4))
    slow, fast = (row["share"] for row in tables["Share of a recipe's steps to the best loss of the first"])
    assert slow == 1 and fast < 1
