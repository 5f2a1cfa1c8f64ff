"""Data that many tests of models read and none changes: digits as a snapshot, and small pictures with a palette."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from igpt_model.config import PretrainConfig
from pipeline.dataset.snapshot import Snapshot
from pipeline.images import palette
from pipeline.images.decode import centre_square
from tests.igpt_model.training.test_loop import digits_snapshot, short_training

SIDE = 16


@pytest.fixture(scope="session")
def colours(photos: np.ndarray) -> np.ndarray:
    histogram = palette.ColourHistogram()
    histogram.add(photos)
    return palette.fit(histogram, 64, seed=0)


@pytest.fixture(scope="session")
def table(colours: np.ndarray) -> np.ndarray:
    return palette.compute_lookup_table(colours)


@pytest.fixture(scope="session")
def pictures(photos: np.ndarray) -> np.ndarray:
    """Real pictures of 16x16, uint8 [120, 16, 16, 3]."""
    return np.stack([centre_square(Image.fromarray(photo), SIDE) for photo in photos])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """300 digits as a snapshot."""
    return digits_snapshot(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def config(data: Snapshot, tmp_path: Path) -> PretrainConfig:
    """Thirty steps of a tiny model on the digits, in the test's own folder."""
    return short_training(data, tmp_path)


@pytest.fixture
def path(data: Snapshot, tmp_path: Path) -> Path:
    """The same config as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(short_training(data, tmp_path))))
    return path
