"""What is in a snapshot, row by row: of this snapshot, and of no older one."""

from pathlib import Path

import pytest

from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import SPLITS
from pipeline.errors import IgptError
from pipeline.inspect import tables


def test_the_addresses_are_those_of_a_snapshot_alone(twice_built: DatasetConfig) -> None:
    there = {str(path) for path in (Path(twice_built.dataset) / "shards").glob("train-*.tar")}
    for number in (1, 2):
        chosen = snapshot.read(twice_built.dataset, number)
        urls = tables.shard_urls(chosen, "train")
        assert set(urls) < there and len(urls) == len(chosen.of_split("train"))
    assert sorted(tables.shard_urls(chosen)) == sorted(u for split in SPLITS for u in tables.shard_urls(chosen, split))


@pytest.mark.parametrize(
    ("urls", "line"),
    [
        (["s3://d/shards/a.tar"], "s3://d/shards/a.tar"),
        (["s3://d/shards/a.tar", "s3://d/shards/b.tar"], "s3://d/shards/{a,b}.tar"),
    ],
)
def test_addresses_in_braces(urls: list[str], line: str) -> None:
    assert tables.in_braces(urls) == line


def test_each_image_is_listed_once_with_its_class_and_split(twice_built: DatasetConfig) -> None:
    chosen = snapshot.read(twice_built.dataset)
    table = tables.together(tables.images(chosen))
    assert table is not None and len(table) == chosen.images()
    assert len(set(table["key"].to_pylist())) == chosen.images()
    for row in table.to_pylist():
        assert Path(row["uri"]).parent.name == row["class"] == chosen.classes[row["label"]]
        assert row["shard"].startswith(row["split"])
    validation = tables.together(tables.images(chosen, "validation"))
    assert validation is not None and len(validation) == chosen.images("validation")
    assert not [row for row in table.to_pylist() if not Path(row["uri"]).exists()]


def test_rejected_images_are_those_of_a_snapshot_alone(twice_built: DatasetConfig) -> None:
    first, second = (snapshot.read(twice_built.dataset, number) for number in (1, 2))
    assert tables.together(tables.rejected(first)) is None
    table = tables.together(tables.rejected(second))
    assert table is not None
    (row,) = table.to_pylist()
    assert (row["reason"], row["uri"]) == ("truncated", f"{twice_built.raw}/flower/03.jpg")
    with pytest.raises(IgptError, match="no images in split"):
        tables.shard_urls(first, "holdout")
