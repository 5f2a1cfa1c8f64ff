"""Measurements of a snapshot: kept by its content, beside the dataset, and nobody fails who may not write there."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

from pipeline.dataset import measured
from pipeline.store import objects
from tests.pipeline.dataset.test_count_shards import linked_snapshot


def test_what_is_kept_is_read_again_by_each_snapshot_of_the_content(tmp_path: Path) -> None:
    data = linked_snapshot(tmp_path / "dataset", train=2, validation=1)
    assert measured.read(data, "loss.json") is None
    measured.keep(data, "loss.json", b"2.5")
    published_again = replace(data, number=9, parent=8)
    assert measured.read(published_again, "loss.json") == b"2.5"
    other = replace(data, shards=data.shards[:-1])
    assert measured.read(other, "loss.json") is None
    assert not [path for path in (tmp_path / "dataset").rglob("*") if path.name == "loss.json"]


def test_who_may_only_read_goes_on(tmp_path: Path) -> None:
    data = linked_snapshot(tmp_path / "dataset", train=2, validation=1)
    with mock.patch.object(objects, "write_bytes", side_effect=PermissionError("read only")):
        measured.keep(data, "loss.json", b"2.5")
    assert measured.read(data, "loss.json") is None
