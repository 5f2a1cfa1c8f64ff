"""Tars of every kind: links, holes, several archives in one file, names, compression, and labels beside images."""

import bz2
import gzip
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import IgptError
from pipeline.source.raw_reads import read_images
from tests.conftest import write_tar
from tests.pipeline.source.test_list_source import Listed, assert_refused, column, contents, listed, write


def by_name(source: Listed) -> dict[str, bytes]:
    """The contents of a listing, by name."""
    names = column(source, "name")
    return {names[image.row]: image.data for image in read_images(source.table, tolerant=False)}


def rejections(source: Listed) -> dict[str, tuple[str, str]]:
    """Reason and detail of what cannot be read, by name."""
    names = column(source, "name")
    return {
        names[image.row]: (str(image.rejection.reason), image.rejection.detail)
        for image in read_images(source.table, tolerant=False)
        if image.rejection is not None
    }


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def add(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "a") as archive:
        for member in members:
            archive.addfile(member)
    return path


LINKS = {
    "hard": (link("dog/2.png", "cat/1.png"), {"dog/2.png": b"one"}),
    "hard, with a dot": (link("./dog/2.png", "./cat/1.png"), {"dog/2.png": b"one"}),
    "hard, to a file without an extension": (link("dog/2.png", "blobs/ab12"), {"dog/2.png": b"blob"}),
    "symbolic": (link("dog/2.png", "../cat/1.png", tarfile.SYMTYPE), {"dog/2.png": b"one"}),
    "symbolic, beside": (link("cat/2.png", "1.png", tarfile.SYMTYPE), {"cat/2.png": b"one"}),
    "symbolic, to something hidden": (link("2.png", ".store/ab12", tarfile.SYMTYPE), {"2.png": b"hidden"}),
}


@pytest.mark.parametrize("situation", LINKS)
def test_links_are_other_names_of_members(tmp_path: Path, situation: str) -> None:
    member, linked = LINKS[situation]
    path = write_tar(tmp_path / "a.tar", {"cat/1.png": b"one", "blobs/ab12": b"blob", ".store/ab12": b"hidden"})
    source = listed(add(path, member))
    assert by_name(source) == {"cat/1.png": b"one", **linked}


def test_a_link_to_a_link_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": b"one"})
    links = (link("2.png", "3.png", tarfile.SYMTYPE), link("3.png", "1.png"), link("4.png", "gone.png"))
    source = listed(add(path, *links, link("5.png", "5.png", tarfile.SYMTYPE)))
    assert column(source, "name") == [f"{number}.png" for number in range(1, 6)]
    told = rejections(source)
    assert set(told) == {"4.png", "5.png"} and {reason for reason, _ in told.values()} == {"unreadable_member"}
    assert "gone.png, which is not in the archive" in told["4.png"][1]
    assert {n: data for n, data in by_name(source).items() if n not in told} == dict.fromkeys(
        ("1.png", "2.png", "3.png"), b"one"
    )


def test_a_member_with_holes_is_in_quarantine_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "whole.png", b"whole")
    with (tmp_path / "raw" / "holes.png").open("wb") as file:
        file.truncate(1_000_000)
        file.seek(900_000)
        file.write(b"end")
    (tmp_path / "raw" / "link.png").symlink_to("holes.png")
    subprocess.run(
        ["tar", "cSf", "raw.tar", "-C", "raw", "whole.png", "holes.png", "link.png"], check=True, cwd=tmp_path
    )
    source = listed(tmp_path / "raw.tar")
    assert column(source, "name") == ["holes.png", "link.png", "whole.png"]
    told = rejections(source)
    assert set(told) == {"holes.png", "link.png"} and told["holes.png"] == told["link.png"]
    assert told["link.png"][0] == "unreadable_member" and "without -S" in told["link.png"][1]


def test_tars_one_behind_the_other(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{name}.tar", {f"{name}/1.png": name.encode()}).read_bytes() for name in "abc"]
    source = listed(write(tmp_path / "all.tar", b"".join(parts)))
    assert by_name(source) == {"a/1.png": b"a", "b/1.png": b"b", "c/1.png": b"c"}
    assert_refused(write(tmp_path / "cut.tar", parts[0] + parts[1][:1000]), "not a readable tar")


def test_something_else_behind_a_tar_is_told_and_costs_no_image(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {"cat/1.png": b"one"}).read_bytes()
    source = listed(write(tmp_path / "all.tar", whole + b"a line of a log\n" * 100))
    ((name, (reason, detail)),) = rejections(source).items()
    assert (name, reason) == ("all.tar", "damaged_container") and f"from byte {len(whole)} on, is no tar" in detail
    assert column(source, "name") == ["all.tar", "cat/1.png"]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_that_are_not_utf8_equal_those_of_the_folder(tmp_path: Path, tar_format: int) -> None:
    folder = tmp_path / "raw"
    write(folder / "caf\udce9" / "1.png", b"one")
    path = tmp_path / "raw.tar"
    with tarfile.open(path, "w", format=tar_format) as archive:
        archive.add(folder, ".")
    assert column(listed(path), "name") == column(listed(folder), "name") == ["caf\\xe9/1.png"]
    assert column(listed(path), "label") == column(listed(folder), "label") == ["caf\\xe9"]
    assert by_name(listed(folder)) == by_name(listed(path)) == {"caf\\xe9/1.png": b"one"}


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".TAR.GZ": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


@pytest.mark.parametrize("extension", COMPRESSIONS)
def test_a_compressed_tar_equals_the_plain_one(tmp_path: Path, extension: str) -> None:
    members = {f"{'ab'[number % 2]}/{number:03d}.png": bytes([number]) * (number * 997) for number in range(60)}
    plain = write_tar(tmp_path / "plain" / "all.tar", members)
    add(plain, link("c/link.png", "a/002.png"))
    packed = write(tmp_path / f"packed/all{extension}", COMPRESSIONS[extension](plain.read_bytes()))
    one, other = listed(plain), listed(packed)
    for same in ("key", "name", "label", "length", "etag", "version"):
        assert column(one, same) == column(other, same)
    assert contents(one) == contents(other)
    some = other.table.take([50, 3, 17])
    assert {image.row: image.data for image in read_images(some, tolerant=False)} == {
        row: contents(other)[key] for row, key in enumerate(some["key"].to_pylist())
    }


def test_a_zstd_tar_made_by_the_tool(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "all.tar", {"cat/1.png": b"one" * 1000, "dog/2.png": b"two"})
    subprocess.run(["zstd", "-q", str(plain)], check=True)
    frames = (tmp_path / "all.tar.zst").read_bytes()
    plain.unlink()
    assert by_name(listed(tmp_path / "all.tar.zst")) == {"cat/1.png": b"one" * 1000, "dog/2.png": b"two"}
    assert_refused(write(tmp_path / "cut.tar.zst", frames[:-10]), "not a readable tar")


LABELS = {
    "a number": ({"a.jpg": b"1", "a.cls": b" 3\n"}, "3"),
    "a text": ({"a.jpg": b"1", "a.cls": b"01"}, "01"),
    "no label": ({"x/a.jpg": b"1", "x/a.cls": b"-1"}, None),
    "an empty label": ({"x/a.jpg": b"1", "x/a.cls": b""}, None),
    "a key with dots": ({"img.001.jpg": b"1", "img.001.cls": b"7", "img.002.cls": b"8"}, "7"),
    "a key to the first dot": ({"a.seg.png": b"1", "a.cls": b"7"}, "7"),
    "none beside it": ({"cat/a.jpg": b"1", "b.cls": b"7"}, "cat"),
    "not UTF-8": ({"a.jpg": b"1", "a.cls": b"caf\xe9"}, "caf\\xe9"),
    "byte order mark": ({"a.jpg": b"1", "a.cls": b"\xef\xbb\xbf7\r\n"}, "7"),
    "extensions in capitals": ({"a.JPG": b"1", "a.CLS": b"7"}, "7"),
}


@pytest.mark.parametrize("situation", LABELS)
def test_labels_beside_images(tmp_path: Path, situation: str) -> None:
    members, label = LABELS[situation]
    assert column(listed(write_tar(tmp_path / "a.tar", members)), "label") == [label]


JSON_LABELS = {
    "the column": ({"a.jpg": b"1", "a.json": b'{"species": "cat"}'}, "cat"),
    "rather than .cls": ({"a.jpg": b"1", "a.json": b'{"species": 3}', "a.cls": b"7"}, "3"),
    "none, and .cls": ({"a.jpg": b"1", "a.json": b'{"species": null}', "a.cls": b"7"}, None),
    "another column": ({"a.jpg": b"1", "a.json": b'{"caption": "a cat"}', "a.cls": b"7"}, "7"),
    "no JSON": ({"x/a.jpg": b"1", "x/a.json": b"{"}, "x"),
    "too deep": ({"x/a.jpg": b"1", "x/a.json": b"[" * 100_000}, "x"),
}


@pytest.mark.parametrize("situation", JSON_LABELS)
def test_label_column_chooses_one_of_the_json_beside_images(tmp_path: Path, situation: str) -> None:
    members, label = JSON_LABELS[situation]
    assert column(listed(write_tar(tmp_path / "a.tar", members), label_column="species"), "label") == [label]


def test_the_json_beside_images_has_their_splits(tmp_path: Path) -> None:
    members = {"a.jpg": b"1", "a.json": b'{"part": "val"}', "b.jpg": b"2", "b.json": b'{"part": "train"}'}
    path = write_tar(tmp_path / "a.tar", members)
    assert len(listed(path, split_column="part").table) == 2
    with pytest.raises(IgptError, match=r"split_column part of 'c.jpg' has no value"):
        listed(write_tar(tmp_path / "b.tar", members | {"c.jpg": b"3"}), split_column="part")
    with pytest.raises(IgptError, match=r"a.json: kind is a list, and an image has one value"):
        listed(write_tar(tmp_path / "c.tar", {"a.jpg": b"1", "a.json": b'{"kind": [1, 2]}'}), label_column="kind")


def test_members_that_are_no_files_are_counted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": b"one"})
    pipe, device, folder = tarfile.TarInfo("2.png"), tarfile.TarInfo("tty"), tarfile.TarInfo("3.png")
    pipe.type, device.type, folder.type = tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE
    source = listed(add(path, pipe, device, folder))
    assert column(source, "name") == ["1.png"]
    assert source.source.left_out == {".png": 1, "without an extension": 1}
