"""Which image goes to which split and shard, as a pure function of the listing and the config."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config import DatasetConfig, digest
from pipeline.snapshot import SPLITS

# Neighbouring members of a tar are read together. A run of this many stays together in one shard, which keeps reads
# long; the runs themselves are spread over the shards, so that a tar sorted by class still gives mixed shards.
_RUN = 32


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to be made: its split, its name, and the rows of the listing that it takes, in sample order."""

    split: str
    name: str
    rows: np.ndarray  # int64 [n]


def _unit_hash(keys: list[str], salt: str) -> np.ndarray:
    """A number in [0, 1) for every key, float64 [n]: the same on any machine and whatever other keys there are."""
    seed = np.uint64(int(digest(salt)[:16], 16))
    values = np.array([int(key[:16], 16) for key in keys], np.uint64) ^ seed
    # SplitMix64's finalizer: the keys are hashes already, but a salt must change the order, not only shift it.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((values ^ (values >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def assign_splits(keys: list[str], config: DatasetConfig) -> np.ndarray:
    """The split of every key, as an index into SPLITS, int64 [n]; independent of the other images."""
    position = _unit_hash(keys, f"split {config.seed}")
    bounds = [config.test_fraction, config.test_fraction + config.validation_fraction]
    return np.array([SPLITS.index("test"), SPLITS.index("validation"), SPLITS.index("train")])[
        np.searchsorted(bounds, position, side="right")
    ]


def label_numbers(listing: pa.Table, classes: tuple[str, ...]) -> np.ndarray:
    """The class of every image as an index into `classes`, -1 without one, int64 [n]."""
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers.get(label, -1) for label in listing["label"].to_pylist()], np.int64)


def plan_shards(
    listing: pa.Table, classes: tuple[str, ...], config: DatasetConfig, palette_sha256: str
) -> list[ShardPlan]:
    """Divide the listing into shards of at most `samples_per_shard` images, every row in exactly one."""
    keys = listing["key"].to_pylist()
    splits = assign_splits(keys, config)
    order = _unit_hash(keys, f"order {config.seed}")
    in_tar = np.array(listing["offset"]) >= 0
    recipe = {**config.fingerprint(), "palette": palette_sha256}
    labels = label_numbers(listing, classes).tolist()
    columns = (listing[name].to_pylist() for name in ("key", "offset", "length", "etag"))
    identity = list(zip(*columns, labels, strict=True))
    plans = []
    for split_number, split in enumerate(SPLITS):
        rows = np.flatnonzero(splits == split_number)
        # A run begins at every 32nd row of a split, and at every image that is an object of its own.
        starts = np.flatnonzero((np.arange(len(rows)) % _RUN == 0) | ~in_tar[rows])
        runs = np.split(rows, starts[1:]) if len(rows) else []
        runs.sort(key=lambda run: order[run[0]])
        shuffled = np.concatenate(runs) if runs else rows
        count = -(-len(rows) // config.samples_per_shard)
        for index in range(count):
            # Shards of nearly equal size rather than full ones and a rest: equal tasks, equal reads.
            part = shuffled[index * len(rows) // count : (index + 1) * len(rows) // count]
            part = part[np.argsort(order[part], kind="stable")]
            name = f"{split}-{index:06d}-{digest([recipe, [identity[row] for row in part]])[:16]}"
            plans.append(ShardPlan(split=split, name=name, rows=part))
    return plans


def sample_for_palette(listing: pa.Table, config: DatasetConfig) -> np.ndarray:
    """The rows whose pixels the palette is fitted on: training images in a random order, int64 [n]."""
    keys = listing["key"].to_pylist()
    rows = np.flatnonzero(assign_splits(keys, config) == SPLITS.index("train"))
    order = _unit_hash(keys, f"palette {config.seed}")[rows]
    chosen = rows[np.argsort(order, kind="stable")[: config.palette_images]]
    return np.sort(chosen)
