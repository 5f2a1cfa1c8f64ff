"""A dataset that earlier code built: a rerun finds it up to date, or does only what changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from flows.config.refresh import RefreshConfig
from pipeline.build.build import BuildResult, build
from pipeline.config import DatasetConfig
from pipeline.dataset import index, record, snapshot
from pipeline.dataset.decoding import FIRST_RULE
from pipeline.hashing import sha256
from pipeline.inspect.verify import verify
from pipeline.typed_config import config_file
from tests.compatibility.earlier import FLAT, WRITTEN, copy
from tests.conftest import Command, run_here, write_tar
from tests.pipeline.dataset.test_snapshot import files


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with the raw images, the dataset of them and the config that made it."""
    return copy(tmp_path, "raw", "dataset", "configs/refresh.yaml")


def rebuild(kept: Path, *overrides: str, raw: Path | None = None) -> BuildResult:
    """Build again in this process, from where the images and the dataset are now."""
    places = [f"dataset.raw={raw or kept / 'raw'}", f"dataset.dataset={kept / 'dataset'}"]
    config = config_file.load(RefreshConfig, kept / "refresh.yaml", [*places, *overrides])
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        return build(config.dataset)


def test_a_rerun_finds_nothing_to_do(kept: Path) -> None:
    before = (kept / "dataset" / "snapshots" / "000001.json").read_bytes()
    result = rebuild(kept)
    assert result.unchanged and result.snapshot.number == 1
    assert result.snapshot.to_bytes() == before


def test_a_rerun_writes_the_record_that_was_not_there_and_leaves_the_rest(kept: Path) -> None:
    before = files(kept / "dataset")
    first = rebuild(kept)
    after = files(kept / "dataset")
    assert {path for path in after if path not in before} == {
        path for path in after if path == "records/000001.json" or path.startswith("seen/")
    }
    assert {path: after[path] for path in before} == before
    # Its decoder was another one, and today's refuses the same file: that is found out once.
    assert (first.planned.older_images, first.planned.older_rules) == (21, ("rule 1",))
    again = rebuild(kept)
    assert again.unchanged and files(kept / "dataset") == after
    # From then on the time of an inode counts too.
    path = kept / "raw" / "0" / "1.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 255
    path.write_bytes(bytes(data))
    os.utime(path, (WRITTEN, WRITTEN))
    changed = rebuild(kept, "dataset.max_reject_fraction=0.5").planned.plan
    assert changed is not None and changed.changed_images == 1


def test_its_raw_images_may_have_moved_meanwhile(kept: Path) -> None:
    old = snapshot.read(str(kept / "dataset"))
    (kept / "raw").rename(kept / "moved")
    result = rebuild(kept, raw=kept / "moved")
    assert result.unchanged and result.planned.moved_from == "/tmp/igpt-fixtures/raw"
    table = index.read(old.dataset, old.shards[0].index_path)
    assert not any(Path(url).exists() for url in table["url"].to_pylist())
    assert all(Path(url).exists() for url in index.with_addresses(table, record.of_addresses(old))["url"].to_pylist())


def test_its_pixels_are_counted_by_the_next_build_and_its_samples_copied(kept: Path) -> None:
    (kept / "raw" / "0" / "1.png").unlink()
    new = rebuild(kept).snapshot
    assert verify(new) == [] and set(new.pixel_counts) == {"train", "validation", "test"}
    assert {part.by for shard in new.shards for part in shard.decoding} == {FIRST_RULE}, "nothing was decoded"


def test_its_content_is_known_by_both_digests(kept: Path) -> None:
    old = snapshot.read(str(kept / "dataset"))
    assert old.manifest_digest == sha256((kept / "dataset" / "snapshots" / "000001.json").read_bytes())
    anew = rebuild(kept, "dataset.min_size=7").snapshot  # everything is made anew, and comes out the same
    assert (anew.number, anew.content_digest) == (2, old.content_digest)
    assert anew.is_known_as(old.manifest_digest)


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


def test_a_dataset_of_containers_goes_on_without_a_shard_made_anew(tmp_path: Path) -> None:
    folder = copy(tmp_path, "containers") / "containers"
    config = DatasetConfig(
        raw=str(folder / "raw"),
        dataset=str(folder / "dataset"),
        resolution=8,
        colours=8,
        samples_per_shard=9,
        validation_fraction=0.2,
        test_fraction=0.2,
    )
    before = files(folder / "dataset")
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        first = build(config)
        assert first.unchanged and (first.snapshot.images(), first.snapshot.rejected) == (21, {"not_an_image": 1})
        after = files(folder / "dataset")
        assert {path: after[path] for path in before} == before
        write_tar(folder / "raw" / "more.tar", {"0/new.png": (FLAT / "raw" / "0" / "0.png").read_bytes()})
        second = build(config)
    plan = second.planned.plan
    assert plan is not None and (len(plan.make), len(plan.rewrite), len(plan.drop), plan.new_images) == (1, 0, 0, 1)
    assert set(first.snapshot.shards) < set(second.snapshot.shards) and verify(second.snapshot) == []
