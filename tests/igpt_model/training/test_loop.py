"""The training loop: it learns, resumes bit for bit, and refuses checkpoints and data that do not match."""

import io
import math
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint
from igpt_model.runs.open_model import load_model
from igpt_model.runs.result import read_result
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import ShardCache, batches
from pipeline.store import objects
from tests.conftest import run_here


class Recorder:
    """A listener that records all events."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}
        self.lines: list[str] = []
        self.checkpoints: list[int] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.values[step] = values

    def warn(self, line: str) -> None:
        self.lines.append(line)

    def saved(self, step: int) -> None:
        self.checkpoints.append(step)


def build_here(raw: Path, dataset: Path, **fields: object) -> Snapshot:
    """A snapshot built in this process."""
    defaults = {"resolution": 8, "colours": 16, "samples_per_shard": 60, "validation_fraction": 0.2}
    config = DatasetConfig(raw=str(raw), dataset=str(dataset), **{**defaults, **fields})  # type: ignore[arg-type]
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        return build(config).snapshot


def digits_snapshot(root: Path, **fields: object) -> Snapshot:
    """300 real digits as a snapshot on local disk."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:300], digits.target[:300], strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
        objects.write_bytes(str(root / "raw" / str(label) / f"{number}.png"), buffer.getvalue())
    return build_here(root / "raw", root / "dataset", **fields)


def short_training(data: Snapshot, folder: Path) -> PretrainConfig:
    """Thirty steps of a tiny model; takes a second."""
    return PretrainConfig.from_fields(
        dataset=data.dataset,
        runs=str(folder / "runs"),
        preset="tiny",
        layers=2,
        width=32,
        steps=30,
        global_batch=16,
        warmup_steps=5,
        evaluate_every=15,
        checkpoint_every=10,
        cache=str(folder / "cache"),
        workers=1,
    )


def final_weights(run: str) -> dict[str, torch.Tensor]:
    return load_model(run).model.state_dict()


class KilledError(Exception):
    """Simulates the death of the process."""


# Settings whose state a checkpoint must contain for a run to resume exactly.
KINDS = {
    "plain": {},
    "masked, averaged, micro batches": {"objective": "masked", "ema_decay": 0.9, "micro_batch": 5},
    "by class, augmented": {"class_conditional": True, "flip": True, "crop_padding": 1},
    "told how it is augmented": {"tell_augmentation": True, "crop_padding": 1, "augmented_share": 0.8},
    "upscaling, recomputed activations": {"low_resolution": 4, "activation_checkpointing": True},
    "bfloat16": {"precision": "bfloat16"},
    "muon": {"optim": "muon", "weight_decay": 0.1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_with_the_same_bits(
    kind: str, data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    config = config.with_fields(**KINDS[kind])
    calm = str(tmp_path / "calm")
    calm_recorder = Recorder()
    expected = train(config.with_fields(sample_every=15), data, calm, Worker(), calm_recorder)
    assert calm_recorder.checkpoints == [10, 15, 20, 30]

    def die(step: int) -> None:
        if step == 17:
            raise KilledError

    cut = str(tmp_path / "cut")
    with pytest.raises(KilledError):
        train(config, data, cut, Worker(), Recorder(), heartbeat=die)
    assert read_result(cut) is None
    assert checkpoint.marked_steps(cut) == [10]
    recorder = Recorder()
    result = train(config, data, cut, Worker(), recorder)
    assert min(recorder.values) > 10
    assert result.restarts == 1
    assert (result.validation_loss, result.images) == (expected.validation_loss, 30 * 16)
    weights, calm_weights = final_weights(cut), final_weights(calm)
    assert len(calm_weights) > 10
    assert all(torch.equal(weights[name], calm_weights[name]) for name in calm_weights)


def test_a_tiny_model_learns_64_images_by_heart(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    """The lowest possible loss is that of choosing one of the 60 images: ln 60 / 64 = 0.064."""
    small = replace(data, shards=(replace(data.of_split("train")[0], split="train"), data.of_split("validation")[0]))
    model = config.with_fields(width=64, steps=450, global_batch=20, learning_rate=0.005, evaluate_every=450)
    recorder = Recorder()
    result = train(model.with_fields(checkpoint_every=450), small, str(tmp_path / "heart"), Worker(), recorder)
    floor = math.log(small.samples("train")) / 64
    assert floor <= recorder.values[440]["train_loss"] < 1.1 * floor < 0.071
    assert result.validation_loss > 1.0


def test_digits_reach_their_loss(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    model = config.with_fields(layers=3, width=64, steps=200, global_batch=32, evaluate_every=200, checkpoint_every=200)
    result = train(model, data, str(tmp_path / "run"), Worker(), Recorder())
    assert result.validation_loss < 1.45  # the per-position unigram of all digits has 1.64


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"low_resolution": 4}, 1.36),  # the small image nearly determines a quarter of the pixels
        ({"class_conditional": True}, 1.42),
        ({"ema_decay": 0.98}, 1.45),
        ({"precision": "bfloat16", "steps": 60, "global_batch": 16}, 1.59),
        ({"objective": "masked", "steps": 400}, 1.62),
    ],
)
def test_digits_reach_their_loss_with_every_objective(
    fields: dict, expected: float, data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    model = config.with_fields(layers=3, width=64, steps=200, global_batch=32, evaluate_every=400, checkpoint_every=400)
    result = train(model.with_fields(**fields), data, str(tmp_path / "run"), Worker(), Recorder())
    assert result.validation_loss < expected


def test_the_logged_validation_loss_is_that_of_the_saved_weights(
    data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    from igpt_model.model.losses import image_losses

    run = str(tmp_path / "run")
    result = train(config, data, run, Worker(), Recorder())
    model = load_model(run).model
    cache = ShardCache(data, config.execution.cache)
    views = [cache.open(shard) for shard in data.of_split("validation")]
    with torch.inference_mode():
        parts = [torch.tensor(images.tokens_NT).long() for images in batches(views, 7)]
        losses = torch.cat([image_losses(model(part), part) for part in parts])
    assert len(losses) == data.samples("validation") == result.validation_images
    assert float(losses.mean()) == pytest.approx(result.validation_loss, abs=1e-5)


def test_another_shape_is_refused(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train(config, data, run, Worker(), Recorder())
    with pytest.raises(IgptError, match="another model shape"):
        train(config.with_fields(width=64), data, run, Worker(), Recorder())
