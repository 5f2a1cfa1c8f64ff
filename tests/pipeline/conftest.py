"""A small source that a test may change, and the config of a dataset built from it."""

import shutil
from pathlib import Path

import pytest

from pipeline.config import DatasetConfig


@pytest.fixture
def config(image_folder: Path, tmp_path: Path) -> DatasetConfig:
    """A source of 100 images that the test may change, and a dataset that does not exist yet."""
    shutil.copytree(image_folder, tmp_path / "raw")
    return DatasetConfig(
        raw=str(tmp_path / "raw"),
        dataset=str(tmp_path / "dataset"),
        resolution=16,
        colours=24,
        samples_per_shard=20,
        validation_fraction=0.15,
        test_fraction=0.1,
        max_reject_fraction=0.2,
    )
