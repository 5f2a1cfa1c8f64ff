"""The tables beside a shard: what is written is read, and all images of a snapshot are accounted for."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.dataset import index
from pipeline.dataset.decoding import FIRST_RULE
from pipeline.dataset.keys import key_of
from pipeline.dataset.record import Record
from pipeline.store import objects
from tests.pipeline.dataset.test_snapshot import entry, make


def indexed(name: str, version: int) -> dict:
    row = {"key": key_of(name), "version": version, "uri": name, "url": name, "offset": -1, "etag": "e", "bytes": 7}
    return {**row, "sha256": "ab", "label": 2, "width": 30, "height": 20, "rule": 1, "pillow": None}


def rejected(name: str, version: int) -> dict:
    return {
        **{field: indexed(name, version)[field] for field in ("key", "version", "uri", "etag", "bytes")},
        "sha256": "ab",
        "reason": "truncated",
        "detail": "d",
    }


@pytest.mark.parametrize(
    ("schema", "row"), [(index.INDEX, indexed("a.png", 2**64 - 1)), (index.QUARANTINE, rejected("a.png", 5))]
)
def test_what_is_written_is_read(schema: object, row: dict, tmp_path: Path) -> None:
    data = index.to_bytes([row, row], schema, {"entry": {"name": "größer"}})  # type: ignore[arg-type]
    assert index.metadata_of(data) == {"entry": {"name": "größer"}, "format": 3}
    objects.write_bytes(str(tmp_path / "index" / "a.parquet"), data)
    table = index.read(str(tmp_path), "index/a.parquet")
    assert (table.schema.remove_metadata(), table.to_pylist()) == (schema, [row, row])
    assert index.read(str(tmp_path), "index/a.parquet", ("version",)).to_pylist() == [{"version": row["version"]}] * 2
    with pytest.raises(FileNotFoundError):
        index.read(str(tmp_path), "index/b.parquet")


def test_columns_that_an_earlier_format_lacks_are_null(tmp_path: Path) -> None:
    earlier = pa.schema([field for field in index.INDEX if field.name not in ("rule", "pillow")])
    table = pa.Table.from_pylist([indexed("/old/a.png", 1)], earlier)
    objects.write_bytes(str(tmp_path / "index" / "a.parquet"), index.table_to_bytes(table))
    read = index.read(str(tmp_path), "index/a.parquet", ("key", "rule", "url"))
    assert read["rule"].to_pylist() == [None]
    moved = Record(raw_root="/new", former_roots=("/old",), refused_by=FIRST_RULE)
    assert index.with_addresses(read, moved)["url"].to_pylist() == ["/new/a.png"]
    assert index.with_addresses(read, None)["url"].to_pylist() == ["/old/a.png"]


def test_the_images_of_a_snapshot_are_those_of_its_indexes_and_quarantines(tmp_path: Path) -> None:
    shards = (entry("train", 0), entry("train", 1))
    parent = make(tmp_path, shards=shards)
    expected = []
    for number, shard in enumerate(shards):
        names = [f"{number}/{image}.png" for image in range(5)]
        objects.write_bytes(
            str(tmp_path / shard.index_path), index.to_bytes([indexed(name, 3) for name in names[:4]], index.INDEX)
        )
        assert shard.quarantine_path is not None
        objects.write_bytes(
            str(tmp_path / shard.quarantine_path), index.to_bytes([rejected(names[4], 9)], index.QUARANTINE)
        )
        assert index.accounted(shard) == len(names)
        expected += [(key_of(name), version, number) for name, version in zip(names, (3, 3, 3, 3, 9), strict=True)]
    rows = index.parent_rows(parent)
    assert list(zip(rows.keys.text(), rows.versions.tolist(), rows.shards.tolist(), strict=True)) == expected
    assert len(index.parent_rows(make(tmp_path / "empty", shards=())).versions) == 0


def test_the_source_of_an_image_is_its_object_or_its_place_in_a_container() -> None:
    assert index.uri_of("s3://raw/a.png", -1, "a.png") == "s3://raw/a.png"
    assert index.uri_of("s3://raw/all.tar", 512, "cats/a.png") == "s3://raw/all.tar#cats/a.png"
