"""The listing: every image of a folder or a tar once, with the location of its bytes; one-line errors."""

import http.server
import os
import shutil
import socket
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.build.plan import assign_splits
from pipeline.config import DatasetConfig
from pipeline.dataset.keys import key_of, source_digest
from pipeline.dataset.snapshot import SPLITS
from pipeline.errors import IgptError
from pipeline.source import left_out
from pipeline.source.list_source import Source, list_source
from pipeline.source.listing import LISTING, Listing
from pipeline.source.raw_reads import read_images
from tests.conftest import write_tar


def write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@dataclass(frozen=True)
class Listed:
    """A listing, sorted by name, and what came with it."""

    table: pa.Table
    source: Source
    digest: str


def listed(url: object, **fields: object) -> Listed:
    config = DatasetConfig(raw=str(url), dataset="-", **fields)  # type: ignore[arg-type]
    with Listing() as listing:
        source = list_source(config, listing)
        rows = listing.rows
        table = listing.take(np.arange(len(rows)))
        assert table.schema == LISTING
        keys = table["key"].to_pylist()
        assert len(set(keys)) == len(keys)
        assert rows.keys.text() == keys
        assert [listing.label_names[n] if n >= 0 else None for n in rows.labels] == table["label"].to_pylist()
        digest = source_digest(rows.keys, rows.versions, assign_splits(rows, config))
    return Listed(table=table.sort_by("name"), source=source, digest=digest)


def column(source: Listed, name: str) -> list:
    return source.table[name].to_pylist()


def contents(source: Listed) -> dict[str, bytes]:
    """What the listing's URLs, offsets and lengths lead to, by key."""
    keys = column(source, "key")
    return {keys[image.row]: image.data for image in read_images(source.table, tolerant=False)}


def test_a_folder_of_classes(image_folder: Path) -> None:
    source = listed(image_folder)
    files = sorted(str(file.relative_to(image_folder)) for file in image_folder.rglob("*.*"))
    assert column(source, "name") == files
    assert column(source, "label") == [name.split("/")[0] for name in files]
    assert source.source.left_out == {}
    assert contents(source) == {key_of(name): (image_folder / name).read_bytes() for name in files}
    assert column(source, "length") == [(image_folder / name).stat().st_size for name in files]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "c.webp"):
        write(tmp_path / name)
    source = listed(tmp_path)
    assert column(source, "name") == ["a.PNG", "b.jpg", "c.webp"]
    assert column(source, "label") == [None] * 3


def test_the_class_is_the_folder_that_the_image_lies_in(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cats" / "1.png")
    write(tmp_path / "train" / "dogs" / "big" / "1.png")
    write(tmp_path / "top.png")
    assert column(listed(tmp_path), "label") == [None, "cats", "big"]


def test_one_image_is_a_source(tmp_path: Path) -> None:
    assert column(listed(write(tmp_path / "only.png")), "name") == ["only.png"]


@pytest.mark.parametrize(
    "name", ["photo[1].png", "what?.png", "all*.png", "with space & plus+.png", "ünïcødé.png", "#1.png"]
)
def test_odd_names_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "class" / name, b"this one")
    write(tmp_path / "class" / "photo1.png", b"another")
    source = listed(tmp_path)
    assert contents(source)[key_of(f"class/{name}")] == b"this one"


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "{}/../" + "raw"])
def test_the_form_of_the_url_does_not_matter(tmp_path: Path, form: str) -> None:
    write(tmp_path / "raw" / "a" / "1.png")
    plain = listed(tmp_path / "raw")
    other = listed(form.format(tmp_path / "raw"))
    assert other.table == plain.table
    assert other.digest == plain.digest


def test_a_folder_of_tars_and_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "part-0.tar", {"cats/1.png": b"one", "dogs/2.jpg": b"two"})
    write_tar(tmp_path / "more" / "part-1.tar", {"cats/3.png": b"three"})
    write(tmp_path / "cats" / "4.png", b"four")
    source = listed(tmp_path)
    expected = {
        "cats/4.png": b"four",
        "more/part-1.tar/cats/3.png": b"three",
        "part-0.tar/cats/1.png": b"one",
        "part-0.tar/dogs/2.jpg": b"two",
    }
    assert column(source, "name") == list(expected)
    assert contents(source) == {key_of(name): data for name, data in expected.items()}
    assert column(source, "label") == ["cats", "cats", "cats", "dogs"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_label_file_beside_a_flat_folder(tmp_path: Path, kind: str) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / name)
    table = pa.table({"label": ["dog", "cat", "cat"], "file_name": ["b.png", "a.png", "gone.png"], "more": [1, 2, 3]})
    path = tmp_path / f"labels.{kind}"
    pq.write_table(table, path) if kind == "parquet" else pyarrow.csv.write_csv(table, path)
    source = listed(tmp_path, labels=str(path))
    assert column(source, "name") == ["a.png", "b.png", "c.png"]
    assert column(source, "label") == ["cat", "dog", None]
    assert (source.source.unlabelled, source.source.unmatched_labels, source.source.left_out) == (1, 1, {})


def test_a_label_file_matches_names_in_any_unicode_form(tmp_path: Path) -> None:
    # An accent is one code point in what people type, and a letter and a mark in what many macOS programs write.
    write(tmp_path / unicodedata.normalize("NFD", "été.png"))
    write(tmp_path / unicodedata.normalize("NFC", "naïve.png"))
    (tmp_path / "labels.csv").write_text(
        unicodedata.normalize("NFC", "file_name,label\nété.png,summer\n")
        + unicodedata.normalize("NFD", "naïve.png,no\n")
    )
    source = listed(tmp_path, labels=str(tmp_path / "labels.csv"))
    assert sorted(column(source, "label")) == ["no", "summer"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no label file there"),
        ("name,label\na.png,cat\n", "no column file_name among name, label"),
        ("file_name,label\na.png,cat\na.png,dog\n", "'a.png' is named twice"),
    ],
)
def test_an_unusable_label_file_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    write(tmp_path / "raw" / "a.png")
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(IgptError, match=words) as raised:
        listed(tmp_path / "raw", labels=str(tmp_path / "labels.csv"))
    assert "\n" not in str(raised.value)


def test_splits_from_folder_names(tmp_path: Path) -> None:
    names = ("train/cat/1.png", "val/cat/2.png", "Test/3.png", "sub/valid/dog/4.png")
    for name in names:
        write(tmp_path / "raw" / name)
    write_tar(tmp_path / "raw" / "train-0001.tar", {"dog/5.png": b"five"})
    config = DatasetConfig(raw=str(tmp_path / "raw"), dataset="-", splits="folders")
    with Listing() as listing:
        list_source(config, listing)
        rows = listing.take(np.arange(5)).to_pylist()
        splits = [SPLITS[number] for number in assign_splits(listing.rows, config)]
    assert {row["name"]: (split, row["label"]) for row, split in zip(rows, splits, strict=True)} == {
        "train/cat/1.png": ("train", "cat"),
        "val/cat/2.png": ("validation", "cat"),
        "Test/3.png": ("test", None),
        "sub/valid/dog/4.png": ("validation", "dog"),
        "train-0001.tar/dog/5.png": ("train", "dog"),
    }


def test_an_image_in_no_split_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "1.png")
    write(tmp_path / "trainer" / "2.png")
    with pytest.raises(IgptError, match=r"'trainer/2\.png' lies in no folder train, val or test"):
        listed(tmp_path, splits="folders")


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "a.png")
    (tmp_path / "raw" / "again").symlink_to(tmp_path / "raw")
    assert len(listed(tmp_path / "raw").table) == 1


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    hidden = (".hidden.png", "._1.png", "cats/.thumbs/1.png", "__MACOSX/cats/._1.png", "./.top.png", "./._top.png")
    for name in ("cats/1.png", *hidden):
        write(tmp_path / "folder" / name)
    write_tar(tmp_path / "all.tar", dict.fromkeys(("./cats/1.png", *hidden), b"content"))
    for place in ("folder", "all.tar"):
        source = listed(tmp_path / place)
        assert column(source, "name") == ["cats/1.png"]
        assert source.source.left_out == {}


def test_leftovers_of_network_storage_are_no_images(tmp_path: Path) -> None:
    for name in ("cats/1.png", "cats/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/2.png", "$RECYCLE.BIN/3.png"):
        write(tmp_path / name)
    source = listed(tmp_path)
    assert column(source, "name") == ["cats/1.png"]
    assert source.source.left_out == {}


def test_files_that_are_no_images_are_counted_by_extension(tmp_path: Path) -> None:
    names = (
        "cats/1.png",
        "cats/2.JFIF",
        "cats/notes.txt",
        "README",
        "labels.csv",
        "old.csv",
        "archive.RAR",
        "a.HEIC",
    )
    odd = ("b.[/i]", "c.2026-01-01 a long remark", "d.\x1b[31m", "e.")
    for name in (*names, *odd):
        write(tmp_path / "raw" / name)
    expected = {".txt": 1, ".csv": 2, ".rar": 1, ".heic": 1, "without an extension": 5}
    write_tar(tmp_path / "raw.tar", dict.fromkeys((*names, *odd), b"content") | {"cats/1.cls": b"3"})
    for place in ("raw", "raw.tar"):
        source = listed(tmp_path / place)
        assert sorted(column(source, "name")) == ["cats/1.png", "cats/2.JFIF"]
        assert source.source.left_out == expected


def test_links_that_lead_nowhere_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "1.png")
    for name in ("2.png", "3.png", ".hidden.png"):
        (tmp_path / "raw" / name).symlink_to("../.git/annex/objects/gone")
    (tmp_path / "raw" / "loop").symlink_to("loop")
    assert listed(tmp_path / "raw").source.left_out == {left_out.DANGLING_LINKS: 3}
    (tmp_path / "raw" / "1.png").unlink()
    with pytest.raises(IgptError, match="3 files left out: 3 links that lead nowhere; fetch what they point to"):
        listed(tmp_path / "raw")


def test_pipes_sockets_and_devices_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "4"))
    source = listed(tmp_path)
    assert column(source, "name") == ["1.png"] and source.source.left_out == {left_out.SPECIAL_FILES: 3}


def test_what_cannot_be_read_needs_no_split(tmp_path: Path) -> None:
    write(tmp_path / "train/cats/1.png")
    write(tmp_path / "broken.zip", b"PK\3\4")
    source = listed(tmp_path, splits="folders")
    assert column(source, "name") == ["broken.zip", "train/cats/1.png"]


def test_a_web_server(tmp_path: Path) -> None:
    """Python's own, which knows neither ranges nor etags."""
    write(tmp_path / "cats" / "1.png", b"one")
    write_tar(tmp_path / "all.tar", {"dogs/2.png": b"two" * 300, "dogs/3.png": b"three"})
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with mock.patch.object(http.server.SimpleHTTPRequestHandler, "log_message"):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            tar, folder = listed(f"{url}/all.tar"), listed(f"{url}/")
            assert sorted(contents(tar).values()) == [b"three", b"two" * 300]
            assert sorted(contents(folder).values()) == [b"one", b"three", b"two" * 300]
        finally:
            server.shutdown()
            server.server_close()
    assert column(tar, "name") == ["dogs/2.png", "dogs/3.png"] and column(tar, "label") == ["dogs", "dogs"]
    assert column(folder, "name") == ["all.tar/dogs/2.png", "all.tar/dogs/3.png", "cats/1.png"]


def test_containers_without_images_are_left_out_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "cats/1.png")
    write_tar(tmp_path / "texts.tar", {"a.txt": b"text", "b.md": b"text"})
    pq.write_table(pa.table({"url": ["u"], "caption": ["a photo"]}), tmp_path / "captions.parquet")
    source = listed(tmp_path)
    assert column(source, "name") == ["cats/1.png"]
    assert source.source.left_out == {".txt": 1, ".md": 1, ".tar": 1, ".parquet": 1}


def test_the_digest_says_what_is_in_the_source_and_not_where(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(image_folder, folder)
    digest = listed(folder).digest
    assert listed(folder.rename(tmp_path / "moved")).digest == digest
    members = {str(path.relative_to(image_folder)): path.read_bytes() for path in sorted(image_folder.rglob("*.*"))}
    tars = [write_tar(tmp_path / place / "all.tar", members) for place in ("here", "there")]
    assert len({listed(tar).digest for tar in tars}) == 1
    image = tmp_path / "moved" / "temple" / "07.png"
    os.utime(image, (1, 1))  # another version of the object
    changed = listed(tmp_path / "moved").digest
    image.rename(tmp_path / "moved" / "flower" / "07.png")
    assert len({digest, changed, listed(tmp_path / "moved").digest}) == 3


def test_progress_counts_every_image(tmp_path: Path) -> None:
    counts: list[tuple[str, int, int, str]] = []
    write_tar(tmp_path / "a.tar", {f"{number}.png": b"" for number in range(5)})
    write_tar(tmp_path / "b.tar", {f"{number}.png": b"" for number in range(5, 9)})
    with Listing() as listing:
        list_source(DatasetConfig(raw=str(tmp_path), dataset="-"), listing, progress=lambda *call: counts.append(call))
    assert counts[-1] == ("list", 9, 0, "images")


def assert_refused(url: Path, *words: str) -> None:
    with pytest.raises(IgptError) as raised:
        listed(url)
    line = str(raised.value)
    assert "\n" not in line
    assert str(url) in line
    for word in words:
        assert word in line


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "missing", "nothing is there")


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "nothing is there")


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "b.rar")
    assert_refused(tmp_path, "none of its 2 files", ".png")
