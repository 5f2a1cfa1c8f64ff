"""Training gives the same result with any number of workers, with DDP and FSDP2, and when these change."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint, initial_model, metric_log
from igpt_model.runs.open_model import load_model
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder, short_training
from tests.igpt_model.training.workers import run_workers


@pytest.fixture(scope="module", params=["adam", "muon"])
def config(data: Snapshot, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> PretrainConfig:
    """Uneven splits: 16 images among 3 workers, micro batches of 5, 23 of the validation images while training; with an
    average of the weights."""
    config = short_training(data, tmp_path_factory.mktemp("runs"))
    return config.with_fields(keep_last=3, micro_batch=5, ema_decay=0.9, evaluate_images=23, optim=request.param)


@pytest.fixture(scope="module")
def alone(data: Snapshot, config: PretrainConfig) -> str:
    """The run of one worker."""
    run = objects.join(config.keeping.runs, "alone")
    train(config, data, run, Worker(), Recorder())
    return run


@pytest.fixture(scope="module")
def sharded(config: PretrainConfig) -> str:
    """The run of two workers with a sharded model."""
    return trained(config, "sharded", workers=2, parallelism="fsdp")


def trained(config: PretrainConfig, name: str, *, workers: int, parallelism: str) -> str:
    """Train or resume a run with some workers; returns its folder."""
    run = Path(config.keeping.runs) / name
    path = run.with_suffix(".yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(asdict(config.with_fields(name=name, parallelism=parallelism))))
    run_workers(workers, "igpt_model.train", str(path))
    return str(run)


def assert_same_training(run: str, alone: str) -> None:
    curves, expected = (
        {(entry.step, name): entry.values.get(name) for entry in metric_log.read(folder) for name in CURVES}
        for folder in (run, alone)
    )
    assert curves == pytest.approx(expected, abs=1e-4)
    weights = load_model(alone).model.state_dict()
    for name, value in load_model(run).model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=2e-3, rtol=0)


CURVES = ("train_loss", "validation_loss", "gradient_norm")


def test_a_sharded_model_is_trained_as_a_whole_one(sharded: str, alone: str) -> None:
    assert_same_training(sharded, alone)
    saved = checkpoint.read(checkpoint.folder_of(sharded, 30))
    pieces = saved.index.tensors["weights.blocks.0.mlp_in.weight"].pieces
    assert [piece.file for piece in pieces] == ["weights-00000.safetensors", "weights-00001.safetensors"]
    assert {piece.sizes for piece in pieces} == {(64, 32)}


def test_workers_that_share_a_model_start_from_a_parent(config: PretrainConfig, data: Snapshot, alone: str) -> None:
    still = config.with_fields(parent="models:/digits/1", steps=10, warmup_steps=0, learning_rate=1e-9)
    given = load_model(alone)
    initial_model.keep(objects.join(config.keeping.runs, "child"), given, still, data)
    run = trained(still, "child", workers=2, parallelism="fsdp")
    weights = given.model.state_dict()
    for name, value in load_model(run).model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("workers", "parallelism"), [(3, "fsdp"), (3, "ddp"), (1, "ddp")])
def test_a_checkpoint_of_two_workers_is_resumed_by_any_number(
    workers: int, parallelism: str, sharded: str, alone: str, config: PretrainConfig, data: Snapshot
) -> None:
    name = f"from-two-to-{workers}-{parallelism}"
    run = Path(config.keeping.runs) / name
    shutil.copytree(sharded, run)
    shutil.rmtree(run / "checkpoints" / "00000030")
    (run / "result.json").unlink()
    (run / "reports" / "00000030.json").unlink()
    if workers == 1:
        train(config, data, str(run), Worker(), Recorder())
    else:
        trained(config, name, workers=workers, parallelism=parallelism)
    assert checkpoint.read(checkpoint.folder_of(str(run), 30)).state.restarts == 1
    assert_same_training(str(run), alone)


@pytest.mark.needs("compiler")
def test_workers_compile_blocks_that_recompute_their_activations() -> None:
    printed, _ = run_workers(2, f"{__package__}.compiled_workers")
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [(row["precision"], row["parallelism"], row["compiled"]) for row in rows] == [
        (precision, parallelism, compiled)
        for precision in ("float32", "bfloat16")
        for parallelism in ("ddp", "fsdp")
        for compiled in (False, True)
    ]
    for row in rows:
        assert (row["graphs"], row["breaks"]) == ((1, 0) if row["compiled"] else (0, 0))
        exact = row["precision"] == "float32"
        assert row["loss"] == pytest.approx(rows[0]["loss"], abs=1e-6 if exact else 0.02)
        assert row["norm"] == pytest.approx(rows[0]["norm"], rel=1e-4 if exact else 0.02)
