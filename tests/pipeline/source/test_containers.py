"""Tars and Parquet files of images: what is listed of them, and which are refused."""

import gzip
import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.source.raw_reads import read_images
from tests.conftest import write_tar
from tests.pipeline.source.test_list_source import assert_refused, column, contents, listed, write
from tests.pipeline.source.test_zip_files import write_zip


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_equals_the_folder_that_it_holds(tmp_path: Path, tar_format: int) -> None:
    members = {f"{'deep' * 20}/{name}": name.encode() * 90 for name in ("1.png", f"{'long' * 22}.png", "3.png")}
    for name, content in members.items():
        write(tmp_path / "folder" / name, content)
    folder = listed(tmp_path / "folder")
    tar = listed(write_tar(tmp_path / "all.tar", members, tar_format))
    for same in ("key", "name", "label", "length"):
        assert column(tar, same) == column(folder, same)
    assert contents(tar) == contents(folder)


def test_the_leading_dot_of_tar_is_not_part_of_the_name(tmp_path: Path) -> None:
    members = {"./cats/1.png": b"a", "./2.png": b"b", "/dogs/3.png": b"c"}
    source = listed(write_tar(tmp_path / "all.tar", members))
    assert column(source, "name") == ["2.png", "cats/1.png", "dogs/3.png"]


def test_the_same_name_in_two_tars_is_two_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"cats/1.png": b"first"})
    write_tar(tmp_path / "b.tar", {"cats/1.png": b"second"})
    source = listed(tmp_path)
    assert column(source, "name") == ["a.tar/cats/1.png", "b.tar/cats/1.png"]
    assert sorted(contents(source).values()) == [b"first", b"second"]


def test_the_same_name_twice_in_a_tar_is_two_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"cats/1.png": b"first"})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("cats/1.png")
        member.size = 6
        archive.addfile(member, io.BytesIO(b"second"))
    source = listed(path)
    assert column(source, "name") == ["cats/1.png", "cats/1.png#2"]
    assert list(contents(source).values()) == [b"first", b"second"]


def test_images_of_a_rewritten_tar_are_unchanged(tmp_path: Path) -> None:
    members = {f"cats/{number}.png": bytes([number]) * 50 for number in range(9)}
    before = listed(write_tar(tmp_path / "a" / "all.tar", members))
    grown = {"cats/new.png": b"new", **dict(reversed(members.items()))}
    after = listed(write_tar(tmp_path / "b" / "all.tar", grown))
    versions = [dict(zip(column(source, "key"), column(source, "version"), strict=True)) for source in (before, after)]
    assert versions[0].items() <= versions[1].items()
    assert len(versions[1]) == 10


def test_webdataset_samples_have_the_labels_beside_them(tmp_path: Path) -> None:
    members = {
        "000.cls": b"7",
        "000.jpg": b"a",
        "001.jpg": b"b",
        "001.cls": b" 3\n",
        "x/002.seg.png": b"c",
        "x/003.png": b"d",
    }
    members |= {"x/002.cls": b"cat", "x/003.txt": b"a caption"}
    source = listed(write_tar(tmp_path / "all.tar", members))
    assert dict(zip(column(source, "name"), column(source, "label"), strict=True)) == {
        "000.jpg": "7",
        "001.jpg": "3",
        "x/002.seg.png": "cat",
        "x/003.png": "x",
    }


def write_parquet(path: Path, images: list[bytes], labels: list | None, *, features: str | None = None) -> Path:
    """A file in the layout of Hugging Face datasets, three rows to a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.array([{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)])
    columns = {"image": struct} if labels is None else {"image": struct, "label": pa.array(labels)}
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": features})
    pq.write_table(table, path, row_group_size=3)
    return path


def test_parquet_in_the_layout_of_hugging_face(tmp_path: Path) -> None:
    images = [bytes([number]) * (50 + number) for number in range(8)]
    features = '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    write_parquet(tmp_path / "data" / "train-00000.parquet", images, [0, 1, -1, None, 1, 0, 0, 1], features=features)
    source = listed(tmp_path)
    assert column(source, "name") == [f"data/train-00000.parquet/{row:08d}" for row in range(8)]
    assert column(source, "label") == ["cat", "dog", None, None, "dog", "cat", "cat", "dog"]
    assert list(contents(source).values()) == images
    some = source.table.take([7, 0, 4])
    contents_by_row = {image.row: image.data for image in read_images(some, tolerant=False)}
    assert contents_by_row == {0: images[7], 1: images[0], 2: images[4]}


def test_parquet_without_class_names_or_labels(tmp_path: Path) -> None:
    numbers = listed(write_parquet(tmp_path / "a.parquet", [b"x", b"y"], [5, 12]))
    assert column(numbers, "label") == ["5", "12"]
    assert column(listed(write_parquet(tmp_path / "b.parquet", [b"x"], None)), "label") == [None]
    pq.write_table(pa.table({"image": [b"plain"], "label": ["cat"]}), tmp_path / "c.parquet")
    plain = listed(tmp_path / "c.parquet")
    assert (column(plain, "label"), list(contents(plain).values())) == (["cat"], [b"plain"])


def test_parquet_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "a.parquet")
    assert_refused(tmp_path / "a.parquet", "no column image", "picture")
    write(tmp_path / "b.parquet", b"no parquet" * 100)
    assert_refused(tmp_path / "b.parquet", "not a readable Parquet file")


def test_folders_and_devices_in_a_tar_are_no_images_and_links_are(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "all.tar", {"cats/1.png": b"one", "cats/1.json": b"{}"})
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "cats/1.png"
        archive.addfile(link)
        device = tarfile.TarInfo("device.png")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    source = listed(path)
    assert column(source, "name") == ["cats/1.png", "link.png"]
    assert list(contents(source).values()) == [b"one", b"one"]


def test_a_tar_without_images_is_refused(tmp_path: Path) -> None:
    assert_refused(write_tar(tmp_path / "texts.tar", {"a.txt": b"text"}), "none of its 1 files")


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "all.tar"
    with tarfile.open(path, f"w:{compression}") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    assert_refused(path, "not a readable tar", f"it is a .tar.{compression}: name it so", "uncompressed")


def test_a_container_of_another_kind_than_its_name_says(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.png": b"one"}).read_bytes()
    packed = write_zip(tmp_path / "b.zip", {"1.png": b"one"}).read_bytes()
    assert_refused(write(tmp_path / "c.zip", tar), "it is a .tar: name it so")
    assert_refused(write(tmp_path / "d.tar.gz", tar), "it is a .tar: name it so")
    assert_refused(write(tmp_path / "e.tar", packed), "it is a .zip: name it so")


@pytest.mark.parametrize("write_archive", [write_tar, write_zip])
def test_archives_in_an_archive_are_to_be_unpacked(
    tmp_path: Path, write_archive: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    inner = write_tar(tmp_path / "n01.tar", {"1.png": b"one"}).read_bytes()
    ending = {write_tar: "tar", write_zip: "zip"}[write_archive]
    nested = write_archive(tmp_path / f"nested/all.{ending}", {"readme.txt": b"", "n01.tar": inner})
    assert_refused(nested, "it holds archives, such as n01.tar, and no image; unpack it")
    write(tmp_path / "nested" / "1.png")
    assert listed(tmp_path / "nested").source.left_out == dict(Counter([".txt", ".tar", f".{ending}"]))
    empty = write_archive(tmp_path / f"empty/all.{ending}", {})
    assert_refused(
        empty, f"none of its 1 files is an image, an archive or a Parquet file of images (1 file left out: 1 .{ending})"
    )


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    assert_refused(write(tmp_path / "all.tar", content), "not a readable tar")


@pytest.fixture(scope="module")
def whole_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of images of less than a block, a block, and more; 8,704 bytes of members."""
    sizes = (100, 512, 700, 3000)
    members = {f"cats/{size}.png": bytes([7]) * size for size in sizes}
    return write_tar(tmp_path_factory.mktemp("tar") / "whole.tar", members, tarfile.USTAR_FORMAT)


@settings(max_examples=60)
@given(blocks=st.integers(0, 15), beyond=st.sampled_from([0, 1, 100, 511]))
def test_a_tar_cut_anywhere_in_its_members_is_refused(whole_tar: Path, blocks: int, beyond: int) -> None:
    data = whole_tar.read_bytes()
    members_end = 512 * (2 + 2 + 3 + 7)
    kept = min(512 * blocks + beyond, members_end)
    assert not data[members_end:].strip(b"\0")
    path = write(whole_tar.parent / "cut.tar", data[:kept])
    assert_refused(path, "not a readable tar", "complete")


@pytest.mark.parametrize("member", range(4))
def test_a_tar_with_a_damaged_header_is_refused(whole_tar: Path, tmp_path: Path, member: int) -> None:
    data = bytearray(whole_tar.read_bytes())
    data[512 * (0, 2, 4, 7)[member] + 10] ^= 1
    assert_refused(write(tmp_path / "damaged.tar", bytes(data)), "not a readable tar")


DAMAGED = {
    "cut.tar": lambda whole: whole[:2000],
    "cut.tar.gz": lambda whole: gzip.compress(whole)[:-20],
    "empty.tar": lambda whole: b"",
    "text.zip": lambda whole: b"no archive" * 100,
    "text.tar.zst": lambda whole: b"no archive" * 100,
    "text.parquet": lambda whole: b"no archive" * 100,
    "compressed.tar": gzip.compress,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_container_costs_itself(tmp_path: Path, whole_tar: Path, name: str) -> None:
    write(tmp_path / "raw" / name, DAMAGED[name](whole_tar.read_bytes()))
    assert_refused(tmp_path / "raw", name)  # nothing else is there
    shutil.copy(whole_tar, tmp_path / "raw" / "good.tar")
    source = listed(tmp_path / "raw")
    rows = {row["name"]: row for row in source.table.to_pylist()}
    assert len(rows) == 1 + 4 and source.source.unlabelled == 0
    read = {image.row: image for image in read_images(source.table, tolerant=False)}
    number = column(source, "name").index(name)
    rejection = read[number].rejection
    assert rejection is not None and rejection.reason == "damaged_container" and "\n" not in rejection.detail
    assert sum(image.rejection is None for image in read.values()) == 4
