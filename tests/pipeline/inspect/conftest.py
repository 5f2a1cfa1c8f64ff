"""A dataset that was built twice, for the tests that look at datasets."""

import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from tests.conftest import run_here


@pytest.fixture(scope="package")
def twice_built(image_folder: Path, photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Two snapshots: between them ten images came, one changed, two went, and one was damaged."""
    root = tmp_path_factory.mktemp("looking")
    shutil.copytree(image_folder, root / "raw")
    config = DatasetConfig(
        raw=str(root / "raw"),
        dataset=str(root / "dataset"),
        resolution=16,
        colours=24,
        samples_per_shard=20,
        validation_fraction=0.15,
        test_fraction=0.1,
    )
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        build(config)
        change(root / "raw", photos)
        build(config)
    return config


def change(raw: Path, photos: np.ndarray) -> None:
    (raw / "bud").mkdir()
    for number in range(10):
        Image.fromarray(photos[100 + number]).save(raw / "bud" / f"{number}.png")
    Image.fromarray(photos[99]).save(raw / "temple" / "00.png")
    (raw / "temple" / "01.png").unlink()
    (raw / "flower" / "02.jpg").unlink()
    os.truncate(raw / "flower" / "03.jpg", 700)


@pytest.fixture
def dataset(twice_built: DatasetConfig, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    shutil.copytree(twice_built.dataset, tmp_path / "dataset")
    return tmp_path / "dataset"
