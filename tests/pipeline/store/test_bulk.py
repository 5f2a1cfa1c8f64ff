"""Reading many objects at once: ranges, whole objects with their etags, exceptions for missing ones."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import bulk, objects
from pipeline.store.s3_reads import ReadObject

# Ranges farther apart than this are read apart.
GAP = 64 * 1024
CONTENT = bytes(os.urandom(300_000))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("objects") / "object.bin"
    path.write_bytes(CONTENT)
    return str(path)


@given(
    ranges=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 90_000), st.integers(0, 2000), st.integers(GAP - 10, GAP + 10)),
            st.one_of(st.integers(0, 5000), st.just(0), st.integers(0, 200_000)),
        ),
        max_size=30,
    )
)
def test_ranges_equal_slices(url: str, ranges: list[tuple[int, int]]) -> None:
    ranges = sorted(ranges)
    answers = bulk.read_ranges(url, [start for start, _ in ranges], [length for _, length in ranges])
    assert answers == [CONTENT[start : start + length] for start, length in ranges]


def test_neighbouring_ranges_share_a_request(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[int, int]] = []
    read_range = bulk.read_range

    def counting(url: str, start: int, stop: int) -> bytes:
        requests.append((start, stop))
        return read_range(url, start, stop)

    monkeypatch.setattr(bulk, "read_range", counting)
    near = [(512 + 1024 * number, 400) for number in range(50)]
    far = [(200_000, 10)]
    starts, lengths = zip(*near, *far, strict=True)
    answers = bulk.read_ranges(url, starts, lengths)
    assert answers == [CONTENT[start : start + length] for start, length in near + far]
    assert sorted(requests) == [(512, 512 + 49 * 1024 + 400), (200_000, 200_010)]


def test_whole_objects_come_with_the_tags_of_the_listing(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * number)
    files = list(bulk.list_files(str(tmp_path)))
    answers = bulk.read_objects([file.url for file in files], [file.size for file in files])
    assert len(files) == 20
    for file, answer in zip(files, answers, strict=True):
        number = int(Path(file.url).name)
        assert isinstance(answer, ReadObject)
        assert (answer.data, answer.etag) == (bytes([number]) * number, file.etag)


def test_objects_that_cannot_be_read_are_returned_as_exceptions(url: str) -> None:
    answers = bulk.read_objects([url, f"{url}.missing", url], [300_000, 5, 300_000])
    assert [type(answer) for answer in answers] == [ReadObject, FileNotFoundError, ReadObject]
    assert bulk.read_objects([], []) == []


def test_a_listing_of_nothing_is_empty(tmp_path: Path) -> None:
    assert list(bulk.list_files(str(tmp_path / "missing"))) == []
    assert list(bulk.list_files(str(tmp_path))) == []
    assert bulk.sizes_below(str(tmp_path)) == {}


def test_both_listings_are_equal(tmp_path: Path) -> None:
    for name in ("a", "b/1", "b/c/2"):
        objects.write_bytes(str(tmp_path / name), name.encode())
    fast, plain = bulk.list_files(str(tmp_path)), objects.list_files(str(tmp_path))
    assert {(f.url, f.size) for f in fast} == {(f.url, f.size) for f in plain}
