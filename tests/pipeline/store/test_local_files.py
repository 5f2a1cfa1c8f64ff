"""Listings of local folders: complete or an error, links, and the tags of files."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IgptError
from pipeline.store import bulk, objects
from pipeline.store.objects import StoredFile


@pytest.mark.parametrize("listing", [objects.list_files, bulk.list_files])
def test_a_folder_that_cannot_be_read_is_an_error_and_not_empty(
    listing: Callable[[str], Iterator[StoredFile]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1", "b/2"):
        objects.write_bytes(objects.join(str(tmp_path), name), b"")
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(IgptError, match="/b: permission denied; check its owner and mode"):
        list(listing(str(tmp_path)))


def test_files_removed_during_a_listing_are_left_out(tmp_path: Path) -> None:
    names = [f"{number:02d}" for number in range(20)]
    for name in names:
        objects.write_bytes(objects.join(str(tmp_path), name), b"")
    listing = objects.list_local(str(tmp_path), follow_links=True)
    first = next(listing)
    for name in names:
        (tmp_path / name).unlink()
    assert [first, *listing] == [first]


def test_dangling_links_are_no_files_and_a_link_to_a_file_has_its_own_time(tmp_path: Path) -> None:
    old = tmp_path / "elsewhere" / "old"
    objects.write_bytes(str(old), b"old")
    os.utime(old, (1000, 1000))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "broken").symlink_to("missing")
    (folder / "new").symlink_to(old)
    (folder / "deep").symlink_to(tmp_path / "elsewhere")
    (file,) = objects.list_files(str(folder))
    assert (file.url, file.size) == (str(folder / "new"), 3) and file.modified > 1000
    assert [file.url for file in bulk.list_files(str(folder))] == [str(folder / "new"), str(folder / "deep" / "old")]


def test_the_tag_of_a_file_changes_with_its_content(tmp_path: Path) -> None:
    path = tmp_path / "object"
    tags = set()
    for content, time in ((b"one", 1), (b"two", 2), (b"longer", 2)):
        path.write_bytes(content)
        os.utime(path, (time, time))
        tags.add(next(objects.list_files(str(path))).etag)
    assert len(tags) == 3
