"""However many workers share a model, and however they do, it is the same training: DDP, FSDP2, from one to another."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from igpt_model import checkpoint, parent, reports
from igpt_model.config import PretrainConfig
from igpt_model.execution import Worker
from igpt_model.model_source import load_run
from igpt_model.train import train
from pipeline import storage
from pipeline.snapshot import Snapshot
from tests.test_train import Recorder, digits_snapshot, short_training

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    torch.set_num_threads(1)
    return digits_snapshot(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def config(data: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Uneven in every way: 16 images among 3 workers, 5 at a time, an average of the weights."""
    config = short_training(data, tmp_path_factory.mktemp("runs"))
    return replace(config, keep_last=3, micro_batch=5, ema_decay=0.9)


@pytest.fixture(scope="module")
def alone(data: Snapshot, config: PretrainConfig) -> str:
    """The run of one worker."""
    run = storage.join(config.runs, "alone")
    train(config, data, run, Worker(), Recorder())
    return run


@pytest.fixture(scope="module")
def sharded(config: PretrainConfig) -> str:
    """The run of two workers that each have a part of the model."""
    return trained(config, "sharded", workers=2, parallelism="fsdp")


def trained(config: PretrainConfig, name: str, *, workers: int, parallelism: str) -> str:
    """A run as torchrun's workers train it, or go on with it."""
    run = Path(config.runs) / name
    path = run.with_suffix(".yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**asdict(config), "name": name, "parallelism": parallelism}))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m", "igpt_model.train")
    done = subprocess.run(
        [sys.executable, *launch, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(run)


def assert_same_training(run: str, alone: str) -> None:
    ours, theirs = (
        {(report.step, name): report.values.get(name) for report in reports.read(each) for name in CURVES}
        for each in (run, alone)
    )
    assert ours == pytest.approx(theirs, abs=1e-4)
    weights = load_run(alone).model.state_dict()
    for name, value in load_run(run).model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=2e-3, rtol=0)


CURVES = ("train_loss", "validation_loss", "gradient_norm")


def test_a_sharded_model_is_trained_as_a_whole_one(sharded: str, alone: str) -> None:
    assert_same_training(sharded, alone)
    found = checkpoint.read_mark(checkpoint.folder_of(sharded, 30))
    pieces = found.index.tensors["weights.blocks.0.mlp_in.weight"].pieces
    assert [piece.file for piece in pieces] == ["weights-00000.safetensors", "weights-00001.safetensors"]
    assert {piece.sizes for piece in pieces} == {(64, 32)}


def test_workers_that_share_a_model_start_from_a_parent(config: PretrainConfig, data: Snapshot, alone: str) -> None:
    still = replace(config, parent="models:/digits/1", steps=10, warmup_steps=0, learning_rate=1e-9)
    given = load_run(alone)
    parent.keep(storage.join(config.runs, "child"), given, still, data)
    run = trained(still, "child", workers=2, parallelism="fsdp")
    weights = given.model.state_dict()
    for name, value in load_run(run).model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("workers", "parallelism"), [(3, "fsdp"), (3, "ddp"), (1, "ddp")])
def test_a_checkpoint_of_two_is_gone_on_with_by_any_number(
    workers: int, parallelism: str, sharded: str, alone: str, config: PretrainConfig
) -> None:
    name = f"from-two-to-{workers}-{parallelism}"
    run = Path(config.runs) / name
    shutil.copytree(sharded, run)
    shutil.rmtree(run / "checkpoints" / "00000030")
    (run / "result.json").unlink()
    (run / "reports" / "00000030.json").unlink()
    trained(config, name, workers=workers, parallelism=parallelism)
    assert checkpoint.read_mark(checkpoint.folder_of(str(run), 30)).state.restarts == 1
    assert_same_training(str(run), alone)


def test_workers_compile_blocks_that_recompute_their_activations() -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.compiled_workers")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch], capture_output=True, text=True, cwd=ROOT, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["parallelism"], row["compiled"]) for row in rows] == [
        (parallelism, compiled) for parallelism in ("ddp", "fsdp") for compiled in (False, True)
    ]
    for row in rows:
        assert (row["graphs"], row["breaks"]) == ((1, 0) if row["compiled"] else (0, 0))
        assert row["loss"] == pytest.approx(rows[0]["loss"], abs=1e-6)
        assert row["norm"] == pytest.approx(rows[0]["norm"], rel=1e-4)
