"""The record beside a manifest: addresses that follow the raw images, and whose record it is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset import record
from pipeline.dataset.decoding import FIRST_RULE
from pipeline.dataset.publish import commit
from pipeline.dataset.record import Record
from pipeline.errors import IgptError
from tests.pipeline.dataset.test_snapshot import make

RECORD = Record(raw_root="s3://raw/photos", refused_by=FIRST_RULE, tags=("nightly",), scans=("ab",), seen="cd")


@pytest.mark.parametrize(
    ("root", "url", "address"),
    [
        ("s3://raw/photos", "s3://raw/photos/cat/1.png", "cat/1.png"),
        ("s3://raw/photos", "s3://raw/photos//cat//1.png", "/cat//1.png"),  # empty segments are part of a key
        ("s3://raw/photos", "s3://raw/photos/a.tar#cat/1.png", "a.tar#cat/1.png"),
        ("s3://raw/photos/a.tar", "s3://raw/photos/a.tar#cat/1.png", "#cat/1.png"),
        ("s3://raw/photos/a.tar", "s3://raw/photos/a.tar", ""),
        ("s3://raw/photos", "s3://raw/photos/#1.png", "./#1.png"),
        ("/data/photos", "/data/photos/cat/1.png", "cat/1.png"),
        ("/data/photos", "/data/photos2/1.png", "/data/photos2/1.png"),  # not below it
    ],
)
def test_an_address_below_a_root_goes_with_it(root: str, url: str, address: str) -> None:
    assert record.relative_address(root, url) == address
    if address != url:
        assert record.absolute_address(root, address) == url
        moved = replace(RECORD, raw_root=root).moved_to("s3://new/place")
        assert moved.address(address, relative=True) == "s3://new/place" + url[len(root) :]
        assert moved.address(url, relative=False) == "s3://new/place" + url[len(root) :]


def test_a_source_that_moves_twice_and_back_is_followed() -> None:
    moved = RECORD.moved_to("/a").moved_to("/b").moved_to("s3://raw/photos")
    assert moved.former_roots == ("/a", "/b")
    for old in ("/a/1.png", "/b/1.png", "s3://raw/photos/1.png"):
        assert moved.address(old, relative=False) == "s3://raw/photos/1.png"
    assert RECORD.moved_to(RECORD.raw_root) is RECORD


def test_a_record_is_read_with_the_manifest_that_it_was_written_for(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert record.read(made) is None
    commit(made, record=RECORD)
    read = record.read(made)
    assert read == replace(RECORD, manifest=made.manifest_digest)
    assert read.paths == ("seen/cd.parquet", "scans/ab.parquet")
    # A build that lost leaves its record, which is not taken for the winner's.
    with pytest.raises(IgptError, match="another build published"):
        commit(make(tmp_path, source_digest="cd" * 32), record=RECORD)
    assert record.read(made) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"raw_root": "/raw", "refused_by": 1}', b"\xff"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: bytes) -> None:
    made = make(tmp_path)
    commit(made, record=RECORD)
    (tmp_path / record.path_of(1)).write_bytes(content)
    assert record.read(made) is None


def test_fields_of_later_versions_are_ignored(tmp_path: Path) -> None:
    made = make(tmp_path)
    commit(made, record=RECORD)
    path = tmp_path / record.path_of(1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert record.read(made) is not None
