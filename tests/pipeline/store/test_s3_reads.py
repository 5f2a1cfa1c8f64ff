"""Buckets with keys that are no paths: each is listed once, by its own name, and read by it."""

import pytest

from pipeline.config import DatasetConfig
from pipeline.source.list_source import list_source
from pipeline.source.listing import Listing
from pipeline.store import bulk
from pipeline.store.s3_reads import ReadObject
from tests.pipeline.store.any_key_server import bucket

PLAIN = {f"raw/cat/{number:02d}.png": bytes([number]) * number for number in range(1, 20)}
ODD = {
    "an empty segment": "raw/cat//x.png",
    "an empty segment at the top": "raw//x.png",
    "a dot": "raw/./x.png",
    "two dots": "raw/../x.png",
    "a tab": "raw/cat/a\tb.png",
    "a line break": "raw/cat/a\nb.png",
    "per cent": "raw/50%25/x%2Fy.png",
    "a plus and a space": "raw/a+b c/x.png",
    "a backslash": "raw/a\\b/x.png",
    "NFC": "raw/\u00e9/x.png",
    "NFD": "raw/e\u0301/x.png",
    "an escape": "raw/\x1b[31m/x.png",
    "255 bytes": f"raw/{'d' * 255}/{'f' * 251}.png",
}


@pytest.mark.parametrize("situation", ODD)
def test_every_key_is_listed_once_and_read(situation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {**PLAIN, ODD[situation]: b"odd"}
    with bucket(contents, monkeypatch):
        files = list(bulk.list_files("s3://bucket/raw"))
        assert sorted(file.url for file in files) == sorted(f"s3://bucket/{key}" for key in contents)
        read = bulk.read_objects([file.url for file in files], [file.size for file in files])
        for file, answer in zip(files, read, strict=True):
            assert isinstance(answer, ReadObject), answer
            assert (answer.data, answer.etag) == (contents[file.url.removeprefix("s3://bucket/")], file.etag)
        url = f"s3://bucket/{ODD[situation]}"
        assert (bulk.size(url), bulk.read_range(url, 1, 3)) == (3, b"dd")
        assert [file.url for file in bulk.list_files(url)] == [url]


@pytest.mark.parametrize(
    ("raw", "key"),
    [("s3://bucket", "/raw/cat/x.png"), ("s3://bucket/", "//x.png"), ("s3://bucket//raw", "/raw/x.png")],
)
def test_a_leading_slash_belongs_to_the_key(raw: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {**PLAIN, key: b"odd", "raw/cat/x.png": b"plain"}
    with bucket(contents, monkeypatch):
        files = {file.url: file for file in bulk.list_files(raw)}
        prefix = raw.removeprefix("s3://bucket").removeprefix("/")
        assert set(files) == {f"s3://bucket/{name}" for name in contents if name.startswith(prefix)}
        (read,) = bulk.read_objects([f"s3://bucket/{key}"], [3])
        assert isinstance(read, ReadObject) and read.data == b"odd"


@pytest.mark.parametrize("marker", ["raw/", "raw/cat/", "raw/train.parquet/", "raw/photo.png/"])
def test_markers_of_folders_are_no_files(marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket({**PLAIN, marker: b"", "raw/empty.png": b""}, monkeypatch), Listing() as listing:
        source = list_source(DatasetConfig(raw="s3://bucket/raw", dataset="-"), listing)
        assert len(listing) == len(PLAIN) + 1  # an empty image is one, and is told so by its decoder
        assert source.left_out == {}


def test_a_slash_at_the_end_makes_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {**PLAIN, "raw/1.png": b"one", "raw/1.png/": b"no folder"}
    with bucket(contents, monkeypatch), Listing() as listing:
        source = list_source(DatasetConfig(raw="s3://bucket/raw", dataset="-"), listing)
        assert len(listing) == len(PLAIN) + 1 and sum(source.left_out.values()) == 1


def test_the_same_object_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {
        **PLAIN,
        "raw/cat//01.png": b"odd",
        "raw//cat/01.png": b"odder",
        "raw/e\u0301.png": b"",
        "raw/\u00e9.png": b"",
    }
    listed = []
    for raw in ("s3://bucket/raw", "s3://bucket/raw/"):
        with bucket(contents, monkeypatch), Listing() as listing:
            list_source(DatasetConfig(raw=raw, dataset="-"), listing)
            listed.append(sorted(listing.rows.keys.text()))
    assert listed[0] == listed[1] and len(set(listed[0])) == len(contents)
