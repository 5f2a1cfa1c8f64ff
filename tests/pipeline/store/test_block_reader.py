"""A block reader behaves like the file itself, and reads each block once."""

import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import block_reader, bulk
from pipeline.store.block_reader import BlockReader
from tests.conftest import write_tar

CONTENT = bytes(os.urandom(300_000))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("objects") / "object.bin"
    path.write_bytes(CONTENT)
    return str(path)


@settings(max_examples=50)
@given(steps=st.lists(st.tuples(st.integers(0, 300_000), st.integers(-1, 100_000)), max_size=20))
def test_a_block_reader_is_a_file(url: str, steps: list[tuple[int, int]]) -> None:
    reader = BlockReader(url, len(CONTENT))
    with Path(url).open("rb") as file:
        for place, size in steps:
            assert reader.seek(place) == file.seek(place)
            assert reader.read(size) == file.read(size)
            assert reader.tell() == file.tell()


def test_nothing_is_before_the_beginning(url: str) -> None:
    for place, whence in ((-1, os.SEEK_SET), (-len(CONTENT) - 1, os.SEEK_END)):
        with pytest.raises(OSError, match="seek to -1"):
            BlockReader(url, len(CONTENT)).seek(place, whence)


def test_a_block_reader_reads_blocks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{number}.png": os.urandom(1000) for number in range(200)}
    path = write_tar(tmp_path / "all.tar", members)
    size = path.stat().st_size
    fetched: list[int] = []
    read_range = bulk.read_range

    def counting(url: str, start: int, stop: int) -> bytes:
        fetched.append(start)
        return read_range(url, start, stop)

    monkeypatch.setattr(bulk, "read_range", counting)
    monkeypatch.setattr(block_reader, "_BLOCK_BYTES", 32 * 1024)
    with tarfile.open(fileobj=BlockReader(str(path), size), mode="r:") as archive:
        assert {member.name: archive.extractfile(member).read() for member in archive} == members
    assert sorted(fetched) == list(range(0, size, 32 * 1024))
