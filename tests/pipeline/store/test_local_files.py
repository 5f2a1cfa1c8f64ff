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


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)])
def test_folders_that_links_lead_to_have_the_same_names_in_any_order(
    order: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw/cat/1.png", "disk/dog/1.png", "disk/dog/old/1.png", "disk/bird/1.png"):
        objects.write_bytes(str(tmp_path / name), b"")
    raw = tmp_path / "raw"
    (raw / "a-feline").symlink_to(raw / "cat")  # a folder that has a path of its own
    (raw / "b-dogs").symlink_to(tmp_path / "disk" / "dog")
    (raw / "c-dogs").symlink_to(tmp_path / "disk" / "dog")
    (raw / "d-old").symlink_to(tmp_path / "disk" / "dog" / "old")
    (raw / "cat" / "e-birds").symlink_to(tmp_path / "disk" / "bird")
    (raw / "cat" / "loop").symlink_to(raw)
    scandir = os.scandir

    class Ordered:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self._entries = order([(entry.name, entry) for entry in entries])

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return (entry for _, entry in self._entries)

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return (entry for _, entry in self._entries)

    monkeypatch.setattr(os, "scandir", Ordered)
    listed = sorted(str(Path(file.url).relative_to(raw)) for file in bulk.list_files(str(raw)))
    assert listed == ["b-dogs/1.png", "b-dogs/old/1.png", "cat/1.png", "cat/e-birds/1.png"]


def test_names_that_are_not_utf8_are_listed_and_read_below_a_root_that_is_none(tmp_path: Path) -> None:
    root = tmp_path / "disk\udcff"
    name = "caf\udce9/" + "n" * 251 + ".png"  # 255 bytes
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes(b"content")
    (root / "a\\xe9.png").write_bytes(b"literal")
    for given in (str(root), objects.absolute(str(root))):
        files = {file.url: file for file in bulk.list_files(given)}
        below = f"{tmp_path}/disk\\xff"
        assert set(files) == {f"{below}/caf\\xe9/{'n' * 251}.png", f"{below}/a\\x5cxe9.png"}
        read = bulk.read_objects(list(files), [file.size for file in files.values()])
        assert sorted(answer.data for answer in read if not isinstance(answer, Exception)) == [b"content", b"literal"]
    url = f"{tmp_path}/disk\\xff/a\\x5cxe9.png"
    assert (objects.size(url), objects.read_bytes(url), bulk.read_range(url, 1, 4)) == (7, b"literal", b"ite")


def test_a_file_with_the_longest_name_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / ("n" * 255))
    objects.write_bytes(path, b"content")
    assert objects.read_bytes(path) == b"content" and len(list(tmp_path.iterdir())) == 1
