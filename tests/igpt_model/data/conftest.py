"""Digits in many small shards, for the tests of the cache and of what reads through it."""

from pathlib import Path

import pytest

from igpt_model.config import PretrainConfig
from pipeline.dataset.snapshot import Snapshot
from tests.igpt_model.training.test_loop import digits_snapshot, short_training


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """240 training images in twelve shards."""
    return digits_snapshot(tmp_path_factory.mktemp("digits"), samples_per_shard=20)


@pytest.fixture
def config(data: Snapshot, tmp_path: Path) -> PretrainConfig:
    return short_training(data, tmp_path).with_fields(window_shards=2)
