"""The history of a dataset, the contents of a snapshot, and the difference between two."""

import pytest

from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.inspect import history


def test_the_history_has_every_snapshot(twice_built: DatasetConfig) -> None:
    first, second = history.summaries(twice_built.dataset)
    assert (first.number, first.parent, first.images, first.rejected, first.latest) == (1, None, 100, 0, False)
    assert (second.number, second.parent, second.images, second.rejected, second.latest) == (2, 1, 107, 1, True)
    assert first.published <= second.published
    with pytest.raises(IgptError, match="no dataset snapshot there"):
        history.summaries(twice_built.raw)


def test_the_contents_are_counted_by_split_class_and_reason(twice_built: DatasetConfig) -> None:
    contents = history.contents(snapshot.read(twice_built.dataset))
    by_class = {name: sum(counts.values()) for name, counts in contents.images_by_class.items()}
    assert by_class == {"digit": 20, "flower": 38, "temple": 39, "bud": 10}
    for split in snapshot.SPLITS:
        assert contents.images_by_split[split] == sum(
            counts.get(split, 0) for counts in contents.images_by_class.values()
        )
    assert contents.rejected == {"truncated": 1}


def test_the_difference_names_what_changed(twice_built: DatasetConfig) -> None:
    first, second = (snapshot.read(twice_built.dataset, number) for number in (1, 2))
    diff = history.difference(first, second)
    assert (diff.added, diff.removed, diff.changed, diff.moved, diff.unchanged) == (10, 2, 2, 0, 96)
    raw = twice_built.raw
    assert diff.sources["added"] == [f"{raw}/bud/{number}.png" for number in range(10)]
    assert diff.sources["removed"] == [f"{raw}/flower/02.jpg", f"{raw}/temple/01.png"]
    assert diff.sources["changed"] == [f"{raw}/flower/03.jpg", f"{raw}/temple/00.png"]
    assert (diff.rejected_before, diff.rejected_after) == ({}, {"truncated": 1})
    assert (diff.same_palette, diff.new_classes, diff.config) == (True, ("bud",), {})
    assert diff.shards_kept + diff.shards_gone == len(first.shards)
    assert diff.shards_kept + diff.shards_new == len(second.shards)
    back = history.difference(second, first)
    assert (back.added, back.removed, back.changed) == (2, 10, 2)
