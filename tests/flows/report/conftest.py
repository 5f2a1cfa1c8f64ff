"""A small dataset with hostile names and rejected images, and the outcomes of a training and a probe on it."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from flows.pretrain import PretrainOutcome
from flows.report.origin import Origin
from flows.terminal.memory import StageCost
from igpt_model.config import PretrainConfig
from igpt_model.evaluating.sample_quality import SampleQuality
from igpt_model.model.losses import Baselines
from igpt_model.probing.result import NeighbourSheet, ProbeResult
from igpt_model.runs.result import TrainResult
from igpt_model.tracking.sheets import to_png
from pipeline.build.build import BuildResult, build
from pipeline.config import DatasetConfig
from pipeline.samples.shard_cache import ShardCache
from pipeline.store import objects
from tests.conftest import run_here
from tests.flows.test_probe_report import RESULT

# Classes as folders of strangers may be named. In a page, none of it may be markup or turn the text around.
HOSTILE = ('"><img src=x onerror=alert(1)>', "<script>alert(1)<script>", "a\x1b[31m\u202eb'c & d")
REJECTED = '<b onmouseover="x()">\u202e.png'
COSTS = {
    "pretrain": StageCost(seconds=61.26, peak_memory_bytes=3 << 30),
    "probe": StageCost(seconds=5, peak_memory_bytes=0),
}
ORIGIN = Origin(
    code="igpt 0.1.0, commit abc",
    model="models:/digits/1",
    run="runs/<a>",
    mlflow_run="ab",
    mlflow_url="http://m/#/runs/ab",
)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Built:
    """A build and its config."""

    config: DatasetConfig
    result: BuildResult


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """120 digits in three classes, and five files that are rejected: four kinds of rejection."""
    root = tmp_path_factory.mktemp("report")
    digits = [np.rint(image * (255 / 16)).astype(np.uint8) for image in load_digits().images[:120]]
    for number, image in enumerate(digits):
        objects.write_bytes(str(root / "raw" / HOSTILE[number % 3] / f"{number}.png"), png(image))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    bad = root / "raw" / HOSTILE[0]
    for name, data in {
        REJECTED: png(noise)[:3000],
        "small.png": png(digits[0][:5, :6]),
        "small2.png": png(digits[1][:4, :4]),
        "empty.png": b"",
        "copy.png": png(digits[0]),
    }.items():
        (bad / name).write_bytes(data)
    config = DatasetConfig(
        raw=str(root / "raw"), dataset=str(root / "dataset"), resolution=8, colours=16, samples_per_shard=40,
        validation_fraction=0.2, test_fraction=0.2, max_reject_fraction=0.5, drop_duplicates=True,
    )  # fmt: skip
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        return Built(config=config, result=build(config))


@pytest.fixture
def probed(built: Built) -> ProbeResult:
    """A probe of the dataset: of two test images the three nearest training images."""
    data = built.result.snapshot
    train, test = (ShardCache(data).open(data.of_split(split)[0]) for split in ("train", "test"))
    sheet = NeighbourSheet(
        test_tokens_NT=test.tokens_NHW[:2].reshape(2, -1).astype(np.int64),
        test_labels_N=np.array([0, 1]),
        train_tokens_NKT=np.stack([train.tokens_NHW[:3].reshape(3, -1)] * 2).astype(np.int64),
        train_labels_NK=np.array([[0, 1, 2], [0, 1, 2]]),
        test_keys=tuple(test.view.key(row) for row in range(2)),
        train_keys=(tuple(train.view.key(row) for row in range(3)),) * 2,
    )
    return replace(RESULT, confusion_KK=np.array([[5, 1, 0], [0, 4, 0], [2, 0, 3]]), sheet=sheet)


@pytest.fixture
def quality() -> SampleQuality:
    """How good samples are; of three classes."""
    return SampleQuality(
        samples=500, held_out_images=40, sure_samples=0.812, sure_held_out=0.95, classifier_accuracy=0.97,
        class_shares=(0.5, 0.3, 0.2), sample_distance=43.4, held_out_distance=33.7,
    )  # fmt: skip


class Logger:
    """Stands for the MLflow run: two sheets of checkpoints, and metrics."""

    def pictures_by_step(self, name: str, most: int) -> dict[int, bytes]:
        return {step: sheet(step) for step in (100, 200)} if name == "samples" else {}

    def metric_history(self, name: str) -> list[tuple[int, float]]:
        return [(step, 3 - step / 200) for step in range(10, 310, 10)] if name == "train_loss" else []


def sheet(shade: int) -> bytes:
    return to_png(np.full((60, 100, 3), shade % 256, np.uint8))


@pytest.fixture
def trained(built: Built) -> PretrainOutcome:
    """A training of 300 steps with both sheets of an autoregressive model."""
    data = built.result.snapshot
    result = TrainResult(
        steps=300, images=19_200, validation_loss=1.5, validation_images=24, train_loss=1.4, seconds=60.0,
        images_per_second=320.0, restarts=0, parameters=301_952, snapshot_digest=data.content_digest,
        palette_sha256=data.palette_sha256,
    )  # fmt: skip
    return PretrainOutcome(
        run="runs/<a>",
        snapshot=data,
        result=result,
        baselines=Baselines(uniform=2.77, unigram=2.0, position_unigram=1.7),
        mlflow_run="ab",
        mlflow_url="http://m/#/runs/ab",
        sheets={"samples": sheet(44), "completions": sheet(90)},
        loss_curve=b"",
    )


@pytest.fixture
def training_config(built: Built, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig.from_fields(
        dataset=built.config.dataset, runs="runs", preset="tiny", cache=str(tmp_path / "cache")
    )
