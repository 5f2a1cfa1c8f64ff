"""`igpt dataset duplicates`: in text and JSON, and without the held-out ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from tests.conftest import Command


@pytest.fixture(scope="module")
def built(image_folder: Path, tmp_path_factory: pytest.TempPathFactory, without_cluster: None) -> Snapshot:
    """A dataset with a copy of some images, some of them in other splits."""
    folder = tmp_path_factory.mktemp("near-duplicates")
    shutil.copytree(image_folder, folder / "raw")
    for path in sorted((folder / "raw" / "temple").glob("*.png")):
        shutil.copy(path, path.with_name(f"[copy] {path.name}"))
    fields = {"resolution": 16, "colours": 24, "validation_fraction": 0.15, "test_fraction": 0.1}
    return build(DatasetConfig(raw=str(folder / "raw"), dataset=str(folder / "built"), **fields)).snapshot


def test_near_duplicates_are_told_and_dropped(igpt: Callable[..., Command], built: Snapshot) -> None:
    pairs = json.loads(igpt("dataset", "duplicates", built.dataset, "--json").out)["near_duplicates"]
    assert pairs and all(pair["split"] != "train" for pair in pairs)
    lines = igpt("dataset", "duplicates", built.dataset).out.splitlines()
    held_out = built.images("validation") + built.images("test")
    assert f"{len(pairs)} of {held_out} held-out images look like one of another split" in lines
    assert any("[copy]" in line and " looks like " in line for line in lines)
    told = igpt("dataset", "duplicates", built.dataset, "--drop").out
    dropped = snapshot.read(built.dataset)
    assert dropped.number == 2 and dropped.rejected == {"near_duplicate": len(pairs)}
    assert f"snapshot 2 is published without them: train {dropped.images('train')}" in told
    refused = igpt("dataset", "duplicates", built.dataset, 1, "--drop")
    assert refused.code == 2 and "--drop takes the newest snapshot, 2, and 1 is given" in refused.err
    assert f"0 of {held_out - len(pairs)} held-out" in igpt("dataset", "duplicates", built.dataset).out
