"""Zip archives: their members at random, names of other systems, and what cannot be read of them."""

import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from pipeline.source.raw_reads import SourceChangedError, read_images
from tests.conftest import write_tar
from tests.pipeline.source.test_list_source import assert_refused, column, contents, listed, write
from tests.pipeline.source.test_tar_files import by_name, rejections


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_equals_a_tar_of_the_same_files(tmp_path: Path, compression: int) -> None:
    noise = bytes(range(256)) * 40
    members = {f"{'ab'[number % 2]}/{number:03d}.png": noise[number : number * 170] for number in range(60)}
    members |= {"blank/1.png": bytes(300_000), f"{'deep' * 60}/1.png": b"x", "c/1.png": b"", "a/000.cls": b"zero"}
    in_tar = listed(write_tar(tmp_path / "tar" / "all.tar", members))
    in_zip = listed(write_zip(tmp_path / "zip" / "all.zip", members, compression))
    for same in ("key", "name", "label", "length", "etag", "version"):
        assert column(in_tar, same) == column(in_zip, same)
    assert contents(in_tar) == contents(in_zip)
    some = in_zip.table.take([50, 3, 17])
    assert {image.row: image.data for image in read_images(some, tolerant=False)} == {
        row: contents(in_zip)[key] for row, key in enumerate(some["key"].to_pylist())
    }


def test_a_zip_written_as_a_stream_has_its_sizes_behind_its_members(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with path.open("wb") as file, zipfile.ZipFile(_Unseekable(file), "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        archive.writestr("cat/1.png", b"one" * 500)
        archive.writestr("cat/2.png", b"two", zipfile.ZIP_STORED)
    assert by_name(listed(path)) == {"cat/1.png": b"one" * 500, "cat/2.png": b"two"}


class _Unseekable:
    def __init__(self, file: object) -> None:
        self.write, self.flush = file.write, file.flush  # type: ignore[attr-defined]


def test_a_long_comment_or_extra_field_before_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo("cat/1.png")
        member.extra = struct.pack("<HH", 0xCAFE, 5000) + bytes(5000)
        archive.writestr(member, b"one")
        archive.comment = b"c" * 1000
    assert by_name(listed(path)) == {"cat/1.png": b"one"}


@pytest.mark.parametrize(
    ("raw", "flags", "system", "name"),
    [
        ("caf\u00e9/1.png".encode(), 0x800, 3, "caf\u00e9/1.png"),
        ("caf\u00e9/1.png".encode(), 0, 3, "caf\u00e9/1.png"),  # as zip on Linux may write it
        (b"caf\x82/1.png", 0, 0, "caf\u00e9/1.png"),  # code page 437
        (b"cat\\1.png", 0, 0, "cat/1.png"),  # as programs on Windows may write it
        (b"a\\1.png", 0, 3, "a\\1.png"),
        (b"../../cat/1.png", 0, 3, "../../cat/1.png"),
    ],
)
def test_names_of_members(tmp_path: Path, raw: bytes, flags: int, system: int, name: str) -> None:
    path = write_zip(tmp_path / "all.zip", {"x" * len(raw): b"one"}, zipfile.ZIP_STORED)
    data = path.read_bytes().replace(b"x" * len(raw), raw)
    central = data.index(b"PK\x01\x02")
    changed = bytearray(data)
    changed[central + 5] = system
    struct.pack_into("<H", changed, central + 8, flags)
    struct.pack_into("<H", changed, 6, flags)
    path.write_bytes(bytes(changed))
    assert by_name(listed(path)) == {name: b"one"}


def test_a_name_in_utf8_beside_one_in_a_code_page(tmp_path: Path) -> None:
    name, raw = "\u65e5\u672c/1.png", b"\x93\xfa\x96{/1.png"  # Shift JIS
    path = tmp_path / "all.zip"
    for checksum, read in ((zlib.crc32(raw), name), (0, raw.decode("cp437"))):
        with zipfile.ZipFile(path, "w") as archive:
            member = zipfile.ZipInfo("x" * len(raw))
            field = struct.pack("<BI", 1, checksum) + name.encode()
            member.extra = struct.pack("<HH", 0xCAFE, 1) + b"x" + struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(member, b"one")
        path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
        assert by_name(listed(path)) == {read: b"one"}


def test_members_that_cannot_be_read_are_in_quarantine_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in ("damaged.png", "encrypted.png", "good.png"):
            archive.writestr(name, name.encode() * 20)
        archive.writestr("rare.png", b"rare" * 20, zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    data[data.index(b"damaged.pngdamaged") + 30] ^= 1
    encrypted = data.index(b"encrypted.png", data.index(b"PK\x01\x02")) - 46
    struct.pack_into("<H", data, encrypted + 8, 1)
    path.write_bytes(bytes(data))
    told = rejections(listed(path))
    assert {name: reason for name, (reason, _) in told.items()} == dict.fromkeys(
        ("damaged.png", "encrypted.png", "rare.png"), "unreadable_member"
    )
    assert "checksum" in told["damaged.png"][1].lower() or "CRC" in told["damaged.png"][1]
    assert "password" in told["encrypted.png"][1] and "method 14" in told["rare.png"][1]


def test_links_are_other_names_of_members(tmp_path: Path) -> None:
    targets = {
        "dog/2.png": "../cat/1.png",
        "3.png": "blob",
        "4.png": "dog/2.png",
        "5.png": "/gone.png",
        "6.png": "6.png",
    }
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", b"one")
        archive.writestr("blob", b"blob")
        for name, target in targets.items():
            link = zipfile.ZipInfo(name)
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
    source = listed(path)
    told = rejections(source)
    assert set(told) == {"5.png", "6.png"} and "gone.png, which is not in the archive" in told["5.png"][1]
    assert {name: data for name, data in by_name(source).items() if name not in told} == {
        "cat/1.png": b"one",
        "dog/2.png": b"one",
        "3.png": b"blob",
        "4.png": b"one",
    }


def test_the_last_part_of_a_split_archive_tells_of_the_members_that_it_lacks(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "a.zip", {f"{n}.png": bytes([n]) * 300 for n in range(4)}, zipfile.ZIP_STORED)
    whole.write_bytes(whole.read_bytes()[500:])
    source = listed(whole)
    assert {reason for reason, _ in rejections(source).values()} == {"unreadable_member"}
    assert set(rejections(source)) == {"0.png", "1.png"} and set(column(source, "name")) == {
        f"{n}.png" for n in range(4)
    }


def test_a_zip_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", {"1.png": b"one" * 100, "2.png": b"two"}).read_bytes()
    for size in (len(whole) - 1, len(whole) - 30, len(whole) // 2, 10, 0):
        assert_refused(write(tmp_path / "cut.zip", whole[:size]), "not a readable zip archive")


def test_a_zip_that_is_replaced_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "all.zip", {"1.png": b"one" * 100, "2.png": b"two" * 100}, zipfile.ZIP_STORED)
    source = listed(path)
    for changed in (path.read_bytes().replace(b"one", b"ONE"), b"x" * 400, b"x"):
        path.write_bytes(changed)
        with pytest.raises(SourceChangedError, match=r"all\.zip"):
            contents(source)
