"""A dataset that earlier code built: a rerun finds it up to date, or does only what changed."""

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from flows.config.refresh import RefreshConfig
from pipeline.build.build import BuildResult, build
from pipeline.dataset import snapshot
from pipeline.typed_config import config_file
from tests.compatibility.earlier import copy
from tests.conftest import Command, run_here


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with the raw images, the dataset of them and the config that made it."""
    return copy(tmp_path, "raw", "dataset", "configs/refresh.yaml")


def rebuild(kept: Path) -> BuildResult:
    """Build again in this process, at the current paths of the images and the dataset."""
    places = [f"dataset.raw={kept / 'raw'}", f"dataset.dataset={kept / 'dataset'}"]
    config = config_file.load(RefreshConfig, kept / "refresh.yaml", places)
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        return build(config.dataset)


def test_a_rerun_finds_nothing_to_do(kept: Path) -> None:
    before = (kept / "dataset" / "snapshots" / "000001.json").read_bytes()
    result = rebuild(kept)
    assert result.unchanged and result.snapshot.number == 1
    assert result.snapshot.to_bytes() == before


def test_a_rerun_makes_only_what_is_new(kept: Path) -> None:
    old = snapshot.read(str(kept / "dataset"))
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(kept / "raw" / "0" / "new.png")
    new = rebuild(kept).snapshot
    assert (new.number, new.parent, new.images()) == (2, 1, old.images() + 1)
    assert new.palette_sha256 == old.palette_sha256
    assert set(old.shards) < set(new.shards) and len(new.shards) == len(old.shards) + 1


def test_it_is_verified_and_listed(kept: Path, igpt: Callable[..., Command]) -> None:
    verified = igpt("dataset", "verify", kept / "dataset")
    assert verified.code == 0, verified.out + verified.err
    listed = json.loads(igpt("dataset", "ls", kept / "dataset", "--json").out)
    assert [row["number"] for row in listed] == [1]
