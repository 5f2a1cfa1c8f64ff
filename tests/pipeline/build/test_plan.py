"""The plan: every image in exactly one shard, the same on any machine, and changed only where its inputs changed."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.plan import Plan, Planner, ShardPlan, assign_splits, sample_for_palette
from pipeline.config import DatasetConfig
from pipeline.dataset.keys import Keys, ParentRows, key_of
from pipeline.dataset.snapshot import SPLITS, ShardEntry
from pipeline.source.listing import NO_SPLIT, Rows

CONFIG = DatasetConfig(raw="raw", dataset="dataset", samples_per_shard=10)
PALETTE = "ab" * 32


def rows_of(names: list[str], *, in_tar: bool = False, versions: dict[str, int] | None = None) -> Rows:
    """Images named class/name, each an object of its own or all in one tar, in that order; classes numbered by name."""
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    labels = [classes.index(name.split("/")[0]) if "/" in name else -1 for name in names]
    count = len(names)
    return Rows(
        keys=Keys.of([key_of(name) for name in names]),
        versions=np.array([(versions or {}).get(name, 1) for name in names], np.uint64),
        labels=np.array(labels, np.int32),
        splits=np.full(count, NO_SPLIT, np.int8),
        groups=np.full(count, 0 if in_tar else -1, np.int32),
        whole_groups=np.zeros(count, bool),
    )


def numbered(count: int, classes: int = 1) -> list[str]:
    return sorted(f"{number % classes:03d}/{number:06d}.png" for number in range(count))


def planner_of(rows: Rows, config: DatasetConfig = CONFIG, palette: str = PALETTE) -> Planner:
    return Planner(rows, assign_splits(rows, config), config, config.recipe_digest(palette))


def shards_of(rows: Rows, config: DatasetConfig = CONFIG, palette: str = PALETTE) -> tuple[ShardPlan, ...]:
    return planner_of(rows, config, palette).full().make


def entry_of(plan: ShardPlan) -> ShardEntry:
    count = len(plan.rows)
    return ShardEntry(
        name=plan.name,
        split=plan.split,
        samples=count,
        images=count,
        bytes=0,
        sha256="",
        rejected={},
        quarantine=None,
        index_sha256="",
        quarantine_sha256=None,
    )


def carried_out(plan: Plan, rows: Rows, before: dict[str, list[str]]) -> dict[str, list[str]]:
    """The keys of each shard after a plan was run on shards with the keys `before`."""
    after = {shard.name: before[shard.name] for shard in plan.keep}
    after |= {shard.name: rows.keys.take(shard.rows).text() for shard in plan.work}
    return after


def parent_of(rows: Rows, plans: tuple[ShardPlan, ...]) -> tuple[list[ShardEntry], ParentRows]:
    """The parent rows of a snapshot with these shards."""
    order = np.concatenate([shard.rows for shard in plans])
    shards = np.concatenate([np.full(len(shard.rows), number, np.int32) for number, shard in enumerate(plans)])
    parent = ParentRows(keys=rows.keys.take(order), versions=rows.versions[order], shards=shards)
    return [entry_of(shard) for shard in plans], parent


@given(
    names=st.lists(st.from_regex(r"([a-c]/)?[a-z0-9]{1,6}\.png", fullmatch=True), unique=True, max_size=200),
    in_tar=st.booleans(),
    per_shard=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
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
    rows = rows_of(sorted(names), in_tar=in_tar)
    plans = shards_of(rows, config)
    planned = np.concatenate([np.array([], int), *(p.rows for p in plans)])
    assert sorted(planned.tolist()) == list(range(len(names)))
    splits = assign_splits(rows, config)
    assert all(SPLITS[number] == p.split for p in plans for number in splits[p.rows])
    assert len({p.name for p in plans}) == len(plans)
    for split in SPLITS:
        sizes = [len(p.rows) for p in plans if p.split == split]
        assert not sizes or (max(sizes) <= per_shard and max(sizes) - min(sizes) <= 1)
        assert len(sizes) == -(-sum(sizes) // per_shard)


@settings(max_examples=200)
@given(data=st.data(), per_shard=st.integers(1, 20), in_tar=st.booleans())
def test_a_rerun_accounts_for_every_image_once_and_touches_only_what_changed(
    data: st.DataObject, per_shard: int, in_tar: bool
) -> None:
    config = replace(CONFIG, samples_per_shard=per_shard, validation_fraction=0.2, test_fraction=0.2)
    before = data.draw(st.lists(st.integers(0, 80), unique=True, min_size=1), label="before")
    after = data.draw(st.lists(st.integers(0, 80), unique=True), label="after")
    changed = set(data.draw(st.lists(st.sampled_from(after)) if after else st.just([]), label="changed"))
    old = rows_of(sorted(f"a/{number}.png" for number in before), in_tar=in_tar)
    names = sorted(f"a/{number}.png" for number in after)
    new = rows_of(names, in_tar=in_tar, versions={f"a/{number}.png": 2 for number in changed})
    old_plans = shards_of(old, config)
    shards, parent = parent_of(old, old_plans)
    old_keys = {p.name: old.keys.take(p.rows).text() for p in old_plans}
    plan = planner_of(new, config).rerun(shards, parent)

    all_keys = [key for keys in carried_out(plan, new, old_keys).values() for key in keys]
    assert sorted(all_keys) == sorted(new.keys.text())
    touched = {key_of(f"a/{number}.png") for number in (changed & set(before)) | (set(before) - set(after))}
    assert {shard.name for shard in plan.keep} == {name for name, keys in old_keys.items() if not touched & set(keys)}
    for shard in plan.rewrite:
        assert shard.replaces is not None
        keys = new.keys.take(shard.rows).text()
        assert keys == [key for key in old_keys[shard.replaces.name] if key in set(keys)]
        assert (shard.split, int(shard.name.split("-")[1])) == (shard.replaces.split, shard.replaces.number)
    fresh = {key for shard in plan.make for key in new.keys.take(shard.rows).text()}
    assert fresh == {key_of(f"a/{number}.png") for number in set(after) - set(before)}
    assert plan.new_images == len(set(after) - set(before))
    assert plan.deleted_images == len(set(before) - set(after))
    assert plan.changed_images == len(changed & set(before))
    assert len({*(p.name for p in plan.work), *(s.name for s in plan.keep)}) == len(plan.work) + len(plan.keep)


def test_a_rerun_of_the_same_keeps_everything() -> None:
    rows = rows_of(numbered(300, classes=3))
    shards, parent = parent_of(rows, shards_of(rows))
    plan = planner_of(rows).rerun(shards, parent)
    assert plan.keep == tuple(shards)
    assert not (plan.make or plan.rewrite or plan.drop)


def test_an_image_that_moves_to_another_split_leaves_its_shard() -> None:
    config = replace(CONFIG, splits="folders")
    names = [f"a/{number}.png" for number in range(30)]
    train = replace(rows_of(names), splits=np.zeros(30, np.int8))
    held_out = train.splits.copy()
    held_out[:3] = SPLITS.index("test")
    shards, parent = parent_of(train, shards_of(train, replace(config, validation_fraction=0.0)))
    plan = planner_of(replace(train, splits=held_out), replace(config, validation_fraction=0.0)).rerun(shards, parent)
    assert plan.changed_images == 3
    assert [shard.split for shard in plan.make] == ["test"]
    assert sorted(plan.make[0].rows.tolist()) == [0, 1, 2]
    assert not {0, 1, 2} & {row for shard in plan.rewrite for row in shard.rows.tolist()}


def test_a_shard_that_loses_its_last_image_is_dropped() -> None:
    rows = rows_of(numbered(300))
    plans = shards_of(rows)
    shards, parent = parent_of(rows, plans)
    left = np.setdiff1d(np.arange(300), plans[0].rows)
    fewer = rows_of([numbered(300)[row] for row in left])
    plan = planner_of(fewer).rerun(shards, parent)
    assert [shard.name for shard in plan.drop] == [plans[0].name]
    assert plan.keep == tuple(shards[1:])
    assert plan.deleted_images == len(plans[0].rows)


def test_the_split_of_an_image_is_its_own() -> None:
    rows = rows_of(numbered(500))
    together = assign_splits(rows, CONFIG)
    part = rows_of(numbered(500)[100:200])
    assert np.array_equal(assign_splits(part, CONFIG), together[100:200])
    backwards = rows_of(numbered(500)[::-1])
    assert np.array_equal(assign_splits(backwards, CONFIG), together[::-1])


def test_the_splits_have_about_their_fractions() -> None:
    config = replace(CONFIG, validation_fraction=0.1, test_fraction=0.25)
    rows = rows_of([str(number) for number in range(20_000)])
    share = np.bincount(assign_splits(rows, config), minlength=3) / len(rows)
    # Five standard deviations of a binomial share of 20,000.
    assert np.abs(share - [0.65, 0.1, 0.25]).max() < 5 * np.sqrt(0.25 / len(rows))


def test_another_seed_gives_another_split() -> None:
    config = replace(CONFIG, test_fraction=0.3, validation_fraction=0.3)
    rows = rows_of([str(number) for number in range(1000)])
    other = assign_splits(rows, replace(config, seed=1))
    agreeing = (assign_splits(rows, config) == other).mean()
    assert agreeing < 0.5  # 0.34 when the two are independent


def test_a_held_out_image_never_becomes_a_training_image() -> None:
    rows = rows_of([str(number) for number in range(2000)])
    few = assign_splits(rows, replace(CONFIG, test_fraction=0.05, validation_fraction=0.0))
    more = assign_splits(rows, replace(CONFIG, test_fraction=0.1, validation_fraction=0.0))
    test = SPLITS.index("test")
    assert ((few == test) <= (more == test)).all()


def test_folders_give_the_splits_and_validation_is_held_out_where_they_have_none() -> None:
    config = replace(CONFIG, splits="folders", validation_fraction=0.3)
    rows = rows_of([str(number) for number in range(1000)])
    given = np.where(np.arange(1000) < 800, SPLITS.index("train"), SPLITS.index("test")).astype(np.int8)
    splits = assign_splits(replace(rows, splits=given), config)
    assert (splits[800:] == SPLITS.index("test")).all()
    share = np.bincount(splits[:800], minlength=3) / 800
    assert abs(share[SPLITS.index("validation")] - 0.3) < 5 * np.sqrt(0.25 / 800)
    given[5] = SPLITS.index("validation")
    assert np.array_equal(assign_splits(replace(rows, splits=given), config), given)


def test_the_plan_does_not_depend_on_the_order_of_the_listing() -> None:
    names = numbered(300, classes=3)
    shuffled = [names[row] for row in np.random.default_rng(0).permutation(300)]
    keys = [
        {p.name: rows.keys.take(p.rows).text() for p in shards_of(rows)} for rows in (rows_of(names), rows_of(shuffled))
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("in_tar", [False, True])
def test_a_source_sorted_by_class_gives_mixed_shards(in_tar: bool) -> None:
    rows = rows_of(numbered(10_000, classes=10), in_tar=in_tar)
    config = replace(CONFIG, samples_per_shard=2000, validation_fraction=0.0, test_fraction=0.0)
    for p in shards_of(rows, config):
        shares = np.bincount(rows.labels[p.rows], minlength=10) / len(p.rows)
        assert shares.min() > 0
        assert shares.max() < 0.3
        # Mixed within the shard too: the classes of neighbours differ about as often as in a shuffle.
        assert (np.diff(rows.labels[p.rows]) != 0).mean() > 0.7


def test_images_of_a_tar_are_read_in_runs() -> None:
    rows = rows_of(numbered(10_000), in_tar=True)
    config = replace(CONFIG, samples_per_shard=1000, validation_fraction=0.0, test_fraction=0.0)
    for p in shards_of(rows, config):
        jumps = (np.diff(np.sort(p.rows)) > 1).sum()
        assert jumps <= 1000 // 32 + 2


def test_a_row_group_of_parquet_stays_in_one_shard() -> None:
    rows = rows_of(numbered(3000))
    groups = np.repeat(np.arange(30, dtype=np.int32), 100)
    rows = replace(rows, groups=groups, whole_groups=np.ones(3000, bool))
    config = replace(CONFIG, samples_per_shard=1000, validation_fraction=0.0, test_fraction=0.0)
    plans = shards_of(rows, config)
    assert sum(len(np.unique(groups[p.rows])) for p in plans) == 30


def test_a_changed_version_renames_only_its_own_shard() -> None:
    names = numbered(300, classes=3)
    before, after = shards_of(rows_of(names)), shards_of(rows_of(names, versions={names[7]: 2}))
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old.rows, new.rows)
        assert (old.name != new.name) == (7 in old.rows)


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 48},
        {"min_size": 20},
        {"max_pixels": 1000},
        {"colours": 16},
        {"crops_per_image": 2},
        {"decode": "fast"},
    ],
    ids=str,
)
def test_another_recipe_renames_every_shard(change: dict) -> None:
    rows = rows_of(numbered(300))
    before = {p.name for p in shards_of(rows)}
    assert not before & {p.name for p in shards_of(rows, replace(CONFIG, **change))}


def test_another_palette_renames_every_shard() -> None:
    rows = rows_of(numbered(300))
    assert not {p.name for p in shards_of(rows)} & {p.name for p in shards_of(rows, palette="cd" * 32)}


@pytest.mark.parametrize(
    "change",
    [
        {"raw": "elsewhere"},
        {"dataset": "s3://bucket/dataset"},
        {"palette": "p.npy"},
        {"max_reject_fraction": 0.5},
        {"max_seconds": 1.0},
        {"palette_images": 9},
        {"labels": "labels.csv"},
    ],
    ids=str,
)
def test_settings_that_decide_no_bytes_change_neither_plan_nor_fingerprint(change: dict) -> None:
    rows = rows_of(numbered(300))
    other = replace(CONFIG, **change)
    assert [p.name for p in shards_of(rows)] == [p.name for p in shards_of(rows, other)]
    assert other.fingerprint() == CONFIG.fingerprint()


def test_the_palette_sees_training_images_alone() -> None:
    rows = rows_of(numbered(1000))
    config = replace(CONFIG, test_fraction=0.3, validation_fraction=0.3, palette_images=100)
    splits = assign_splits(rows, config)
    chosen = sample_for_palette(rows, splits, config)
    assert len(np.unique(chosen)) == 100
    assert (splits[chosen] == SPLITS.index("train")).all()
    assert np.array_equal(
        sample_for_palette(rows, splits, replace(config, palette_images=10**6)),
        np.flatnonzero(splits == SPLITS.index("train")),
    )


def test_shard_names_are_told_apart_by_split_and_number() -> None:
    plans = shards_of(rows_of(numbered(300)))
    numbers = Counter((p.split, int(p.name.split("-")[1])) for p in plans)
    assert set(numbers.values()) == {1}
    assert all(p.name.startswith(f"{p.split}-") for p in plans)
