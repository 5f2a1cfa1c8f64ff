"""A snapshot as Arrow tables: the pixels of its shards, beside what the index says of each image."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import index, snapshot
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.errors import IgptError
from pipeline.inspect import tables
from pipeline.readers import arrow

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("split", SPLITS)
def test_a_table_has_the_shards_and_the_index(built: Snapshot, split: str) -> None:
    table = arrow.table(built.dataset, split=split)
    views = [
        ShardView.open(Path(built.dataset) / shard.path, samples=shard.samples, side=8)
        for shard in built.of_split(split)
    ]
    assert np.array_equal(arrow.pixels_of(table["tokens"]), np.concatenate([view.tokens_NHW for view in views]))
    assert table["label"].to_pylist() == np.concatenate([view.labels_N for view in views]).tolist()
    keys = [key.decode() for view in views for key in view.keys_N.tolist()]
    crops = built.samples(split) // built.images(split)
    assert crops == (2 if split == "train" else 1)
    names = zip(table["key"].to_pylist(), table["crop"].to_pylist(), strict=True)
    assert [f"{key}-{crop:03d}" if crops > 1 else key for key, crop in names] == keys
    listed = {row["key"]: row for row in tables.together(tables.images(built, split)).to_pylist()}
    assert Counter(table["key"].to_pylist()) == Counter(dict.fromkeys(listed, crops))
    for row in table.drop_columns(["tokens"]).to_pylist():
        expected = listed[row["key"]]
        assert (row.pop("class_name"), row.pop("crop") < crops) == (expected["class"], True)
        assert row == {name: expected[name] for name in row}
        assert row["licence"].startswith("CC-") and Path(row["uri"]).exists()


def test_rgb_is_the_palette_colour_of_each_token(built: Snapshot) -> None:
    tokens, rgb = (arrow.table(built.dataset, pixels=pixels) for pixels in ("tokens", "rgb"))
    assert len(rgb) == built.samples() and set(rgb["split"].to_pylist()) == set(SPLITS)
    palette_K3 = np.clip(np.rint((built.palette().astype(np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)
    assert np.array_equal(arrow.pixels_of(rgb["rgb"]), palette_K3[arrow.pixels_of(tokens["tokens"])])
    assert (rgb["rgb"].type, tokens["tokens"].type) == (
        pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 8), 8),
        pa.list_(pa.list_(pa.uint16(), 8), 8),
    )


def test_a_table_survives_parquet_and_pandas(built: Snapshot, tmp_path: Path) -> None:
    table = arrow.table(built.dataset, split="test", pixels="rgb")
    pq.write_table(table, tmp_path / "test.parquet")
    again = pq.read_table(tmp_path / "test.parquet")
    assert np.array_equal(arrow.pixels_of(again["rgb"]), arrow.pixels_of(table["rgb"]))
    assert len(table.to_pandas()) == built.samples("test")


def test_a_table_a_shard_is_read_when_it_is_asked_for(built: Snapshot, damaged: str) -> None:
    first, *others = arrow.tables(built.dataset, split="train")
    assert len(first) == built.of_split("train")[0].samples and len(others) == len(built.of_split("train")) - 1
    later = arrow.tables(damaged, split="train")
    with pytest.raises(IgptError, match="tar: the shard's checksum differs from the snapshot's; rebuild the dataset"):
        next(later)
    assert arrow.table(damaged, split="test")


def test_an_index_without_an_image_of_the_shard_is_refused(built: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    read = index.read
    monkeypatch.setattr(index, "read", lambda *place: read(*place).slice(1))
    with pytest.raises(IgptError, match="of the shard is not in it; `igpt dataset verify` tells"):
        arrow.table(built.dataset, split="test")


def test_a_kept_column_does_not_hide_one_of_the_reader(built: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    read = index.read
    monkeypatch.setattr(index, "read", lambda *place: (t := read(*place)).append_column("crop", t["key"]))
    table = arrow.table(built.dataset, split="test")
    assert table["kept_crop"].to_pylist() == table["key"].to_pylist() and set(table["crop"].to_pylist()) == {0}


def test_datasets_of_schema_2_have_the_same_columns(built: Snapshot) -> None:
    old = snapshot.read(str(ROOT / "tests" / "fixtures" / "b9a78dc" / "dataset"))
    table = arrow.table(old.dataset)
    assert table.column_names == [name for name in arrow.table(built.dataset).column_names if name != "licence"]
    assert len(table) == old.samples() and set(table["pillow"].to_pylist()) == {None}
