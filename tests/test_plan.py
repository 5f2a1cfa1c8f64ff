"""The plan: every image in exactly one shard, the same on any machine, and changed only where its inputs changed."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.plan import ShardPlan, assign_splits, label_numbers, plan_shards, sample_for_palette
from pipeline.snapshot import SPLITS
from pipeline.sources import LISTING, key_of

CONFIG = DatasetConfig(raw="raw", dataset="dataset", samples_per_shard=10)
PALETTE = "ab" * 32


def listing_of(names: list[str], *, in_tar: bool = False) -> pa.Table:
    """A listing of images named class/name, each an object of its own or all in one tar, in that order."""
    count = len(names)
    columns = {
        "key": [key_of(name) for name in names],
        "name": names,
        "url": ["raw/all.tar" if in_tar else f"raw/{name}" for name in names],
        "offset": [1024 * number + 512 if in_tar else -1 for number in range(count)],
        "length": [400] * count,
        "etag": ["one"] * count,
        "label": [name.split("/")[0] if "/" in name else None for name in names],
    }
    return pa.table(columns, LISTING)


def numbered(count: int, classes: int = 1) -> list[str]:
    return sorted(f"{number % classes:03d}/{number:06d}.png" for number in range(count))


def with_value(listing: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = listing[column].to_pylist()
    values[row] = value
    return listing.set_column(listing.schema.get_field_index(column), LISTING.field(column), pa.array(values))


def classes_of(listing: pa.Table) -> tuple[str, ...]:
    return tuple(sorted(set(listing["label"].to_pylist()) - {None}))


def plan_of(listing: pa.Table, config: DatasetConfig = CONFIG, palette: str = PALETTE) -> list[ShardPlan]:
    return plan_shards(listing, classes_of(listing), config, palette)


def keys_by_shard(listing: pa.Table, plans: list[ShardPlan]) -> dict[str, list[str]]:
    return {p.name: listing["key"].take(p.rows).to_pylist() for p in plans}


@settings(deadline=None)
@given(
    names=st.lists(st.from_regex(r"([a-c]/)?[a-z0-9]{1,6}\.png", fullmatch=True), unique=True, max_size=200),
    in_tar=st.booleans(),
    per_shard=st.integers(1, 60),
    seed=st.integers(0, 2**40),
    held_out=st.sampled_from([(0.0, 0.0), (0.04, 0.04), (0.5, 0.3), (0.0, 0.9)]),
)
def test_every_row_is_in_exactly_one_shard_of_its_split(
    names: list[str], in_tar: bool, per_shard: int, seed: int, held_out: tuple[float, float]
) -> None:
    config = replace(
        CONFIG,
        samples_per_shard=per_shard,
        seed=seed,
        validation_fraction=held_out[0],
        test_fraction=held_out[1],
    )
    listing = listing_of(sorted(names), in_tar=in_tar)
    plans = plan_of(listing, config)
    rows = np.concatenate([np.array([], int), *(p.rows for p in plans)])
    assert sorted(rows.tolist()) == list(range(len(names)))
    splits = assign_splits(listing["key"].to_pylist(), config)
    assert all(SPLITS[number] == p.split for p in plans for number in splits[p.rows])
    assert len({p.name for p in plans}) == len(plans)
    for split in SPLITS:
        sizes = [len(p.rows) for p in plans if p.split == split]
        assert not sizes or (max(sizes) <= per_shard and max(sizes) - min(sizes) <= 1)
        assert len(sizes) == -(-sum(sizes) // per_shard)


def test_the_split_of_an_image_is_its_own() -> None:
    keys = listing_of(numbered(500))["key"].to_pylist()
    together = assign_splits(keys, CONFIG)
    assert np.array_equal(assign_splits(keys[100:200], CONFIG), together[100:200])
    assert np.array_equal(assign_splits(keys[::-1], CONFIG), together[::-1])


def test_the_splits_have_about_their_fractions() -> None:
    config = replace(CONFIG, validation_fraction=0.1, test_fraction=0.25)
    keys = [key_of(str(number)) for number in range(20_000)]
    share = np.bincount(assign_splits(keys, config), minlength=3) / len(keys)
    # Five standard deviations of a binomial share of 20,000.
    assert np.abs(share - [0.65, 0.1, 0.25]).max() < 5 * np.sqrt(0.25 / len(keys))


def test_another_seed_gives_another_split() -> None:
    config = replace(CONFIG, test_fraction=0.3, validation_fraction=0.3)
    keys = [key_of(str(number)) for number in range(1000)]
    other = assign_splits(keys, replace(config, seed=1))
    agreeing = (assign_splits(keys, config) == other).mean()
    assert agreeing < 0.5  # 0.34 when the two are independent


def test_a_held_out_image_never_becomes_a_training_image() -> None:
    keys = [key_of(str(number)) for number in range(2000)]
    few = assign_splits(keys, replace(CONFIG, test_fraction=0.05, validation_fraction=0.0))
    more = assign_splits(keys, replace(CONFIG, test_fraction=0.1, validation_fraction=0.0))
    test = SPLITS.index("test")
    assert ((few == test) <= (more == test)).all()


def test_the_plan_does_not_depend_on_the_order_of_the_listing() -> None:
    listing = listing_of(numbered(300, classes=3))
    shuffled = listing.take(np.random.default_rng(0).permutation(300))
    assert keys_by_shard(listing, plan_of(listing)) == keys_by_shard(shuffled, plan_of(shuffled))


@pytest.mark.parametrize("in_tar", [False, True])
def test_a_source_sorted_by_class_gives_mixed_shards(in_tar: bool) -> None:
    listing = listing_of(numbered(10_000, classes=10), in_tar=in_tar)
    config = replace(CONFIG, samples_per_shard=2000, validation_fraction=0.0, test_fraction=0.0)
    labels = label_numbers(listing, classes_of(listing))
    for p in plan_of(listing, config):
        shares = np.bincount(labels[p.rows], minlength=10) / len(p.rows)
        assert shares.min() > 0
        assert shares.max() < 0.3
        # Mixed within the shard too: the classes of neighbours differ about as often as in a shuffle.
        assert (np.diff(labels[p.rows]) != 0).mean() > 0.7


def test_images_of_a_tar_are_read_in_runs() -> None:
    listing = listing_of(numbered(10_000), in_tar=True)
    config = replace(CONFIG, samples_per_shard=1000, validation_fraction=0.0, test_fraction=0.0)
    for p in plan_of(listing, config):
        jumps = (np.diff(np.sort(p.rows)) > 1).sum()
        assert jumps <= 1000 // 32 + 2


@pytest.mark.parametrize(("column", "value"), [("etag", "two"), ("length", 401), ("label", "001")])
def test_a_changed_image_renames_only_its_own_shard(column: str, value: object) -> None:
    listing = listing_of(numbered(300, classes=3))
    row = listing["label"].to_pylist().index("000")
    before = plan_of(listing)
    after = plan_of(with_value(listing, column, row, value))
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old.rows, new.rows)
        assert (old.name != new.name) == (row in old.rows)


@pytest.mark.parametrize(
    "change",
    [{"resolution": 48}, {"min_size": 20}, {"max_pixels": 1000}, {"colours": 16}, {"palette_images": 9}],
    ids=str,
)
def test_another_config_renames_every_shard(change: dict[str, int]) -> None:
    listing = listing_of(numbered(300))
    before = {p.name for p in plan_of(listing)}
    assert not before & {p.name for p in plan_of(listing, replace(CONFIG, **change))}


def test_another_palette_renames_every_shard() -> None:
    listing = listing_of(numbered(300))
    assert not {p.name for p in plan_of(listing)} & {p.name for p in plan_of(listing, palette="cd" * 32)}


def test_where_the_source_the_dataset_and_the_palette_lie_does_not_matter() -> None:
    listing = listing_of(numbered(300))
    moved = replace(CONFIG, raw="elsewhere", dataset="s3://bucket/dataset", palette="p.npy", max_reject_fraction=0.5)
    assert keys_by_shard(listing, plan_of(listing)) == keys_by_shard(listing, plan_of(listing, moved))


def test_an_image_at_the_top_has_no_label() -> None:
    listing = listing_of(["a/1.png", "b/2.png", "top.png"])
    assert label_numbers(listing, ("a", "b")).tolist() == [0, 1, -1]


def test_the_palette_sees_training_images_alone() -> None:
    listing = listing_of(numbered(1000))
    config = replace(CONFIG, test_fraction=0.3, validation_fraction=0.3, palette_images=100)
    rows = sample_for_palette(listing, config)
    splits = assign_splits(listing["key"].to_pylist(), config)
    assert len(np.unique(rows)) == 100
    assert (splits[rows] == SPLITS.index("train")).all()
    assert np.array_equal(
        sample_for_palette(listing, replace(config, palette_images=10**6)),
        np.flatnonzero(splits == SPLITS.index("train")),
    )


@pytest.mark.parametrize(
    "field",
    [
        {"resolution": 33},
        {"resolution": 2},
        {"resolution": 258},
        {"colours": 1},
        {"colours": 65537},
        {"samples_per_shard": 0},
        {"palette_images": 0},
        {"max_pixels": 0},
        {"min_size": 0},
        {"validation_fraction": -0.1},
        {"test_fraction": 1.5},
        {"max_reject_fraction": 2.0},
        {"validation_fraction": 0.5, "test_fraction": 0.5},
        {"raw": ""},
        {"dataset": ""},
    ],
    ids=str,
)
def test_a_config_that_cannot_work_is_refused_by_name(field: dict[str, object]) -> None:
    with pytest.raises(IgptError, match=next(iter(field))):
        replace(CONFIG, **field)


def test_shard_names_are_told_apart_by_split_and_number() -> None:
    plans = plan_of(listing_of(numbered(300)))
    numbers = Counter((p.split, int(p.name.split("-")[1])) for p in plans)
    assert set(numbers.values()) == {1}
    assert all(p.name.startswith(f"{p.split}-") for p in plans)
