"""Parquet files of images: columns, labels, row groups of any size, and files that claim more than they hold."""

import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import IgptError
from pipeline.source import parquet_files
from pipeline.source.page_headers import page_header
from pipeline.source.raw_reads import read_images
from tests.pipeline.source.test_list_source import assert_refused, column, contents, listed, write
from tests.pipeline.source.test_tar_files import by_name, rejections

IMAGES = [bytes([number]) * (50 + number) for number in range(8)]


def as_structs(images: list[bytes]) -> pa.Array:
    return pa.array([{"bytes": data, "path": None} for data in images])


def save(path: Path, table: pa.Table, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


COLUMNS = {
    "image, a struct": (pa.table({"image": as_structs(IMAGES)}), {}),
    "image, binary": (pa.table({"image": IMAGES}), {}),
    "image, large binary": (pa.table({"image": pa.array(IMAGES, pa.large_binary())}), {}),
    "image, binary view": (pa.table({"image": pa.array(IMAGES, pa.binary_view())}), {}),
    "img": (pa.table({"img": as_structs(IMAGES)}), {}),
    "img beside paths": (pa.table({"image": ["a.png"] * 8, "img": as_structs(IMAGES)}), {}),
    "a struct of another name": (pa.table({"picture": as_structs(IMAGES), "text": ["a"] * 8}), {}),
    "chosen": (pa.table({"image": as_structs(IMAGES[::-1]), "crop": as_structs(IMAGES)}), {"image_column": "crop"}),
    "chosen, binary": (pa.table({"image": IMAGES[::-1], "picture": IMAGES}), {"image_column": "picture"}),
}


@pytest.mark.parametrize("situation", COLUMNS)
@pytest.mark.parametrize("options", [{}, {"row_group_size": 3}, {"use_dictionary": False}, {"compression": "zstd"}])
def test_the_column_of_the_images(tmp_path: Path, situation: str, options: dict) -> None:
    table, fields = COLUMNS[situation]
    source = listed(save(tmp_path / "a.parquet", table, **options), **fields)
    assert list(contents(source).values()) == IMAGES
    some = source.table.take([7, 0, 4])
    assert {image.row: image.data for image in read_images(some, tolerant=False)} == {
        0: IMAGES[7],
        1: IMAGES[0],
        2: IMAGES[4],
    }


@pytest.mark.parametrize("names", [["picture"], ["url", "caption"], ["image"]])
def test_a_file_without_images_says_how_to_choose_a_column(tmp_path: Path, names: list[str]) -> None:
    path = save(tmp_path / "a.parquet", pa.table({name: ["x"] for name in names}))
    assert_refused(path, "no column image", names[0], "image_column")
    with pytest.raises(IgptError, match="no column photo among"):
        listed(path, image_column="photo")


def test_two_columns_of_images_have_to_be_chosen_from(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"left": as_structs(IMAGES), "right": as_structs(IMAGES)}))
    assert_refused(path, "no column image", "set image_column to one of left, right")


def test_images_of_one_size(tmp_path: Path) -> None:
    images = [bytes([number]) * 50 for number in range(200)]
    path = save(tmp_path / "a.parquet", pa.table({"image": pa.array(images, pa.binary(50))}))
    assert list(contents(listed(path)).values()) == images


def test_a_chosen_column_without_images_says_what_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"pages": [[IMAGES[0]]], "image": [IMAGES[0]]}))
    with pytest.raises(IgptError, match="image_column pages is list<element: binary>, and images are binary or struct"):
        listed(path, image_column="pages")


def test_a_file_without_rows_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"image": pa.array([], pa.binary())}))
    assert_refused(path, "it has no rows")


def test_rows_without_bytes_are_in_quarantine_with_the_reason(tmp_path: Path) -> None:
    rows = [{"bytes": b"one", "path": None}, None, {"bytes": None, "path": "1.png"}, {"bytes": b"", "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    source = listed(save(tmp_path / "a.parquet", pa.table({"image": pa.array(rows, kind), "label": [0, 1, 2, 3]})))
    told = {name: detail for name, (_, detail) in rejections(source).items()}
    assert told == dict.fromkeys(("00000001", "00000002"), parquet_files._NULL)
    assert column(source, "label") == ["0", None, None, "3"]
    assert [image.data for image in read_images(source.table.take([0, 3]), tolerant=False)] == [b"one", b""]


FEATURES = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "fine": {"names": ["tabby", "pug"]}}
LABELS: dict[str, tuple[pa.Array, list[str | None]]] = {
    "integers": (pa.array([0, 1, -1, None]), ["cat", "dog", None, None]),
    "whole floats": (pa.array([0.0, 1.0, float("nan"), 2.0]), ["cat", "dog", None, "2"]),
    "text": (pa.array(["01", "1", "", "-1"]), ["01", "1", None, None]),
    "bytes": (pa.array([b"cat", b"caf\xe9", b"", None]), ["cat", "caf\\xe9", None, None]),
    "dictionary": (pa.array(["a", "b", "a", None]).dictionary_encode(), ["a", "b", "a", None]),
    "nothing": (pa.nulls(4), [None] * 4),
    "decimals": (pa.array([Decimal("0.00"), Decimal("1.50"), Decimal("-1"), None]), ["cat", "1.50", None, None]),
    "half floats": (pa.array([0, 1, float("nan"), 2], pa.float16()), ["cat", "dog", None, "2"]),
}


@pytest.mark.parametrize("situation", LABELS)
def test_labels(tmp_path: Path, situation: str) -> None:
    values, labels = LABELS[situation]
    table = pa.table({"image": IMAGES[:4], "label": values, "fine": [1, 0, 1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    path = save(tmp_path / "cat" / "a.parquet", table)
    source = listed(tmp_path)  # its folder is no label: the file has labels of its own
    assert column(source, "label") == labels
    assert source.source.unlabelled == labels.count(None)
    assert column(listed(path, label_column="fine"), "label") == ["pug", "tabby", "pug", "tabby"]
    with pytest.raises(IgptError, match="no column coarse among image, label, fine; correct label_column"):
        listed(path, label_column="coarse")


CLASS_LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}
CHOSEN: dict[str, tuple[list[str], dict, list[str | None]]] = {
    "in capitals": (["Label"], {}, ["0", "1"]),
    "the only ClassLabel": (["age", "species"], {"species": CLASS_LABEL, "age": {"dtype": "int64"}}, ["cat", "dog"]),
    "one of several": (["fine", "coarse"], {"fine": CLASS_LABEL, "coarse": CLASS_LABEL}, [None, None]),
    "one of several by name": (["fine_label", "coarse_label"], {}, [None, None]),
    "label beside another": (["label", "fine"], {"fine": CLASS_LABEL}, ["0", "1"]),
    "a map of names": (["label"], {"label": {"names": {"1": "dog", "0": "cat"}}}, ["cat", "dog"]),
    "an empty name": (["label"], {"label": {"names": ["", "dog"]}}, [None, "dog"]),
    "names that are none": (["label"], {"label": {"names": 5}, "x": None}, ["0", "1"]),
    "none": (["age"], {"age": {"dtype": "int64"}}, ["animals", "animals"]),
}


@pytest.mark.parametrize("situation", CHOSEN)
def test_the_column_of_labels_where_no_setting_chooses_one(tmp_path: Path, situation: str) -> None:
    names, features, labels = CHOSEN[situation]
    table = pa.table({"image": IMAGES[:2], **{name: [0, 1] for name in names}})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    save(tmp_path / "animals" / "train-00000-of-00001.parquet", table)
    assert column(listed(tmp_path), "label") == labels


def test_folders_of_hive_stand_for_columns(tmp_path: Path) -> None:
    for species, folder in (
        ("big cat", "species=big%20cat"),
        ("dog", "species=dog"),
        (None, "species=__HIVE_DEFAULT_PARTITION__"),
    ):
        for split in ("train", "test"):
            save(
                tmp_path / f"split={split}" / folder / "part-0.parquet",
                pa.table({"image": [f"{species}{split}".encode()]}),
            )
    write(tmp_path / "_SUCCESS")
    for fields in ({"splits": "folders"}, {"split_column": "split"}):
        source = listed(tmp_path, label_column="species", **fields)
        of = dict(zip(by_name(source).values(), column(source, "label"), strict=True))
        assert of == {f"{it}{split}".encode(): it for it in ("big cat", "dog", None) for split in ("train", "test")}
    with pytest.raises(IgptError, match="no column genus among image"):
        listed(tmp_path, label_column="genus")


def test_columns_that_say_more_than_one_thing_are_refused(tmp_path: Path) -> None:
    lists = save(tmp_path / "lists.parquet", pa.table({"image": IMAGES[:2], "label": [[0, 1], [1]]}))
    assert_refused(lists, "'label' is list<", "label_column")
    columns = [pa.array(IMAGES), pa.array([0] * 8), pa.array([1] * 8)]
    twice = save(tmp_path / "twice.parquet", pa.Table.from_arrays(columns, ["image", "label", "label"]))
    assert_refused(twice, "2 columns are named 'label'")
    images = save(tmp_path / "images.parquet", pa.Table.from_arrays(columns, ["image", "image", "label"]))
    assert_refused(images, "2 columns are named 'image'")


def test_splits_of_a_column(tmp_path: Path) -> None:
    table = pa.table({"image": IMAGES[:4], "part": ["train", "Val", "test", "train"]})
    path = save(tmp_path / "a.parquet", table)
    assert len(listed(path, split_column="part").table) == 4
    for value, words in ((None, "has no value"), ("holdout", "is 'holdout'")):
        bad = save(tmp_path / "b.parquet", pa.table({"image": IMAGES[:1], "part": pa.array([value], pa.string())}))
        with pytest.raises(IgptError, match=f"split_column part of '00000000' {words}"):
            listed(bad, split_column="part")
    with pytest.raises(IgptError, match="split_column fold of '00000000' has no value"):
        listed(path, split_column="fold")


def test_a_row_group_is_read_in_batches_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [np.random.default_rng(number).bytes(5000) for number in range(100)]
    path = save(tmp_path / "a.parquet", pa.table({"image": images}), use_dictionary=False)
    monkeypatch.setattr(parquet_files, "_BATCH_BYTES", 20_000)
    sizes = []
    batches = parquet_files._batches

    def counted(*arguments: object) -> object:
        for batch in batches(*arguments):  # type: ignore[arg-type]
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet_files, "_batches", counted)
    source = listed(path)
    assert max(sizes) <= 4 and sum(sizes) == 100
    sizes.clear()
    assert list(contents(source).values()) == images
    assert sum(sizes) == 100  # once, whatever is wanted of it


def claiming(path: Path, *, rows: int) -> Path:
    """A file of a few hundred bytes whose one image stands in as many rows as wanted."""
    table = pa.table({"image": pa.array([b"x"]).dictionary_encode().take(pa.array(np.zeros(rows, np.int32)))})
    return save(path, table, row_group_size=rows, compression="zstd")


def test_a_small_file_that_claims_many_rows_is_damaged(tmp_path: Path) -> None:
    path = claiming(tmp_path / "a.parquet", rows=3_000_000)
    assert path.stat().st_size < 10_000
    assert_refused(path, "claims 3000000 rows in")
    assert len(listed(claiming(tmp_path / "b.parquet", rows=5000)).table) == 5000


def test_a_page_that_claims_gigabytes_is_damaged_and_takes_no_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"image": [b"x" * 10_000]}), use_dictionary=False, compression="zstd")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    header = page_header(bytes(data[chunk.data_page_offset :]))
    claimed = _varint(2 * header.uncompressed_bytes)
    at = data.index(claimed, chunk.data_page_offset)
    larger = _varint(2 * (2**31 - 1))
    data[at : at + len(claimed)] = larger
    path.write_bytes(bytes(data))
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "from pipeline.source.members import ScanOptions\n"
        "from pipeline.source import parquet_files\n"
        "from pipeline.store.objects import StoredFile\n"
        "import os; size = os.stat(sys.argv[1]).st_size\n"
        "table = parquet_files.scan(StoredFile(url=sys.argv[1], size=size, etag='', modified=0), ScanOptions())\n"
        "print(table['problem'].to_pylist())"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "claims 2147483647" in ran.stdout, ran.stderr


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize("seed", range(8))
def test_a_file_damaged_anywhere_is_one_row_or_as_many_as_before(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": as_structs(IMAGES), "label": [0, 1] * 4}), buffer, row_group_size=3)
    for _ in range(25):
        data = bytearray(buffer.getvalue())
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        path = write(tmp_path / "raw" / "a.parquet", bytes(data[: random.integers(len(data))] if seed % 2 else data))
        write(tmp_path / "raw" / "good.png", b"good")
        try:
            source = listed(tmp_path / "raw")
        except IgptError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        names = column(source, "name")
        assert names[-1] == "good.png" and len(names) in {1, 2, 9}
