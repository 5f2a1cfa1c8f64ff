"""Plan which image goes to which split and shard, and which shards of a parent snapshot a rerun keeps. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import DatasetConfig
from pipeline.dataset.keys import Keys, ParentRows, match
from pipeline.dataset.snapshot import SPLITS, ShardEntry
from pipeline.hashing import digest, sha256
from pipeline.partition import divide
from pipeline.source.listing import NO_SPLIT, Rows

# Neighbouring members of a tar are read together. A run of this many stays in one shard, which keeps reads long; the
# runs are distributed over the shards, so that a tar sorted by class gives mixed shards.
_RUN = 32


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """A shard to be made: its split, its name, and its rows of the listing, in the order of its samples."""

    split: str
    name: str
    rows: np.ndarray  # int32 or int64 [n]
    replaces: ShardEntry | None = None
    """The shard of the parent snapshot that it replaces, and from which it copies unchanged samples."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a build. Shards to keep and to drop are those of the parent snapshot."""

    keep: tuple[ShardEntry, ...]
    make: tuple[ShardPlan, ...]
    rewrite: tuple[ShardPlan, ...]
    drop: tuple[ShardEntry, ...]
    """Shards whose images are all gone."""
    new_images: int
    changed_images: int
    deleted_images: int
    remade: frozenset[str] = frozenset()
    """Names of shards in `rewrite` whose samples are made anew where another rule decoded them."""

    @property
    def work(self) -> tuple[ShardPlan, ...]:
        """The shards to be made."""
        return (*self.rewrite, *self.make)


def unit_hash(keys: Keys, salt: str) -> np.ndarray:
    """A number in [0, 1) for every key, float64 [n]; equal on every machine and independent of the other keys."""
    return (_mix(keys, salt) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mix(keys: Keys, salt: str) -> np.ndarray:
    """The upper 64 bits of keys, permuted; uint64 [n]. Each salt gives another permutation."""
    values = keys.high ^ np.uint64(int(digest(salt)[:16], 16))
    # SplitMix64's finalizer: the keys are hashes already, but a salt must shuffle them, not only shift them.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    return values


def assign_splits(rows: Rows, config: DatasetConfig) -> np.ndarray:
    """The split of every image, as a position in SPLITS; int8 [n].

    With splits by hash, it is independent of the other images. With splits by folders or a column, and none for
    validation, `validation_fraction` of the training images is held out by hash.
    """
    test, validation, train = (SPLITS.index(name) for name in ("test", "validation", "train"))
    position = unit_hash(rows.keys, f"split {config.seed}")
    if config.splits == "folders" or config.split_column is not None:
        if (rows.splits == validation).any():
            return rows.splits
        held_out = (rows.splits == train) & (position < config.validation_fraction)
        return np.where(held_out, validation, rows.splits).astype(np.int8)
    assert (rows.splits == NO_SPLIT).all()
    bounds = [config.test_fraction, config.test_fraction + config.validation_fraction]
    return np.array([test, validation, train], np.int8)[np.searchsorted(bounds, position, side="right")]


class Planner:
    """Plans the shards of one listing."""

    def __init__(self, rows: Rows, splits: np.ndarray, config: DatasetConfig, recipe: str) -> None:
        """`recipe` is the digest of the settings that decide a shard's bytes; `rows.labels` are class numbers."""
        self._rows, self._splits, self._config, self._recipe = rows, splits, config, recipe
        self._rank = _mix(rows.keys, f"order {config.seed}")  # uint64 [N]: sorts rows in a random order

    def full(self) -> Plan:
        """Plan new shards for all images."""
        all_rows = np.arange(len(self._rows), dtype=np.int32)
        return Plan(
            keep=(),
            make=self.append(all_rows, ()),
            rewrite=(),
            drop=(),
            new_images=len(all_rows),
            changed_images=0,
            deleted_images=0,
        )

    def rerun(
        self,
        shards: Sequence[ShardEntry],
        parent: ParentRows,
        *,
        remake: Sequence[bool] | None = None,
        remake_by: str = "",
        new_index: bool = False,
    ) -> Plan:
        """Plan what changed since the parent: new shards for new images, rewrite shards with changed or deleted ones.

        `shards` are those of the parent snapshot. Of them, those with `remake` are rewritten, under a name that
        contains the rule `remake_by`; with `new_index` all are, because their indexes get other columns.
        """
        remade = np.zeros(len(shards), bool) if remake is None else np.array(remake, bool)
        in_parent = match(self._rows.keys, parent.keys)
        old = in_parent >= 0
        old_shard = np.where(old, parent.shards[in_parent], -1) if len(parent) else np.full(len(in_parent), -1)
        shard_splits = np.array([SPLITS.index(shard.split) for shard in shards], np.int8)
        # An image whose split changed leaves its shard, and goes to another one like a new image.
        stays = old.copy()
        stays[old] = shard_splits[old_shard[old]] == self._splits[old]
        changed = stays.copy()
        changed[stays] = parent.versions[in_parent[stays]] != self._rows.versions[stays]
        members = np.bincount(parent.shards, minlength=len(shards))
        staying = np.bincount(old_shard[stays], minlength=len(shards))
        changed_in = np.bincount(old_shard[changed], minlength=len(shards))
        touched = (members != staying) | (changed_in > 0) | remade | new_index
        rewrite = []
        stay_rows = np.flatnonzero(stays & touched[old_shard])
        by_shard = stay_rows[np.argsort(old_shard[stay_rows], kind="stable")]
        bounds = np.searchsorted(old_shard[by_shard], np.arange(len(shards) + 1))
        for number in np.flatnonzero(touched & (staying > 0)).tolist():
            shard = shards[number]
            rows = by_shard[bounds[number] : bounds[number + 1]]
            salt = remake_by if remade[number] else ""
            rewrite.append(self._shard(shard.split, shard.number, rows, replaces=shard, salt=salt))
        return Plan(
            keep=tuple(shards[number] for number in np.flatnonzero(~touched).tolist()),
            make=self.append(np.flatnonzero(~stays), shards),
            rewrite=tuple(rewrite),
            drop=tuple(shards[number] for number in np.flatnonzero(touched & (staying == 0)).tolist()),
            new_images=int((~old).sum()),
            changed_images=int(changed.sum() + (old & ~stays).sum()),
            deleted_images=len(parent) - int(old.sum()),
            remade=frozenset(shards[number].name for number in np.flatnonzero(remade).tolist()),
        )

    def append(self, rows: np.ndarray, shards: Sequence[ShardEntry]) -> tuple[ShardPlan, ...]:
        """Plan new shards for some rows, with numbers that follow those of `shards`."""
        first: dict[str, int] = {}
        for shard in shards:
            first[shard.split] = max(first.get(shard.split, 0), shard.number + 1)
        plans = []
        for number, split in enumerate(SPLITS):
            shuffled = self._spread(rows[self._splits[rows] == number])
            # Shards of nearly equal size rather than full ones and a small rest: tasks and reads take equal times.
            parts = divide(shuffled, self._config.samples_per_shard)
            plans += [self._shard(split, first.get(split, 0) + i, part) for i, part in enumerate(parts)]
        return tuple(plans)

    def _spread(self, rows: np.ndarray) -> np.ndarray:
        """The rows in a random order of runs, where a run is some neighbours in a container."""
        groups = self._rows.groups[rows]
        if not (groups >= 0).any():  # no containers: every row is a run of its own
            return rows[np.argsort(self._rank[rows], kind="stable")]
        whole = self._rows.whole_groups[rows]
        begins = (groups < 0) | (groups != np.concatenate([[-2], groups[:-1]]))
        segment_starts = np.flatnonzero(begins)
        within = np.arange(len(rows)) - np.repeat(segment_starts, np.diff(np.append(segment_starts, len(rows))))
        starts = np.flatnonzero(begins | (~whole & (within % _RUN == 0)))
        lengths = np.diff(np.append(starts, len(rows)))
        order = np.argsort(self._rank[rows[starts]], kind="stable")
        starts, lengths = starts[order], lengths[order]
        before = np.cumsum(lengths) - lengths
        return rows[np.repeat(starts - before, lengths) + np.arange(len(rows))]

    def _shard(
        self, split: str, number: int, rows: np.ndarray, replaces: ShardEntry | None = None, salt: str = ""
    ) -> ShardPlan:
        rows = rows[np.argsort(self._rank[rows], kind="stable")]
        columns = (
            (self._rows.keys.high, "<u8"),
            (self._rows.keys.low, "<u2"),
            (self._rows.versions, "<u8"),
            (self._rows.labels, "<i4"),
        )
        content = b"".join(column[rows].astype(kind).tobytes() for column, kind in columns)
        name = f"{split}-{number:06d}-{sha256(self._recipe.encode() + content + salt.encode())[:16]}"
        return ShardPlan(split=split, name=name, rows=rows, replaces=replaces)


def sample_for_palette(rows: Rows, splits: np.ndarray, config: DatasetConfig) -> np.ndarray:
    """A random sample of training images, whose pixels the palette is fitted on; ascending rows, int64 [n]."""
    train = np.flatnonzero(splits == SPLITS.index("train"))
    order = _mix(rows.keys.take(train), f"palette {config.seed}")
    return np.sort(train[np.argsort(order, kind="stable")[: config.palette_images]])
