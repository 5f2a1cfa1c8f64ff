"""Carry out a plan: one task per shard on the Ray cluster, and the counts that must add up before a commit."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.build.plan import ShardPlan
from pipeline.build.shard_tasks import ShardOrder, ShardResult, make_shard
from pipeline.build.source_state import Survey
from pipeline.cluster import tasks as ray_cluster
from pipeline.config import DatasetConfig
from pipeline.dataset import index
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.images.palette_table import lookup_table
from pipeline.progress import Progress


def make_shards(
    found: Survey,
    plans: Sequence[ShardPlan],
    config: DatasetConfig,
    palette_K3: np.ndarray,
    tolerant: bool,
    progress: Progress,
) -> list[ShardResult]:
    """Run one task per shard; returns their results in the order of the plans.

    Raises IgptError when a shard does not account for every image of its plan.
    """
    planned = np.concatenate([np.zeros(0, np.int64), *(each.rows for each in plans)])
    if len(np.unique(planned)) != len(planned):
        raise AssertionError("the plan has an image twice")
    progress("shards", 0, len(planned), "images")
    tasks = ray_cluster.map_tasks(
        make_shard,
        ((order,) for order in orders(found, plans, tolerant)),
        shared=(config, lookup_table(palette_K3)),
        after_crash=lambda call: (replace(call[0], isolated=True),),
    )
    results: dict[int, ShardResult] = {}
    images_done = 0
    for number, result in tasks:
        wanted = len(plans[number].rows)
        if index.accounted(result.entry) != wanted:
            raise IgptError(
                f"{found.dataset}: shard {result.entry.name} accounts for {index.accounted(result.entry)} of {wanted} "
                f"images; delete {result.entry.index_path} and run the build again"
            )
        results[number] = result
        images_done += wanted
        progress("shards", images_done, len(planned), f"images, {len(results)} of {len(plans)} shards")
    return [results[number] for number in range(len(plans))]


def orders(found: Survey, plans: Sequence[ShardPlan], tolerant: bool) -> Iterator[ShardOrder]:
    """The orders for some shards, one after the other, so that few are held at a time."""
    keys = found.rows.keys
    for each, listing in zip(plans, found.listing.gather([each.rows for each in plans]), strict=True):
        instead = found.duplicate_of[each.rows]
        names = keys.take(np.maximum(instead, 0)).text()
        # A duplicate's version is another one than its listing's: it changes when the image is taken itself.
        versions = pa.array(found.rows.versions[each.rows], pa.uint64())
        listing = listing.set_column(listing.schema.get_field_index("version"), "version", versions)
        yield ShardOrder(
            dataset=found.dataset,
            name=each.name,
            split=each.split,
            listing=listing,
            labels=found.rows.labels[each.rows].astype(np.int64),
            duplicate_of=[name if row >= 0 else None for row, name in zip(instead, names, strict=True)],
            replaces=each.replaces,
            tolerant=tolerant,
        )


def check_counts(new: Snapshot, images_in: int, config: DatasetConfig) -> None:
    """Refuse to publish when an image is missing or counted twice, or when too many were rejected.

    Raises IgptError. Duplicates are no rejects.
    """
    accounted = sum(index.accounted(shard) for shard in new.shards)
    if accounted != images_in:
        raise IgptError(
            f"{new.dataset}: the shards account for {accounted} of {images_in} images, nothing was published; build "
            "into another folder, and report this"
        )
    rejected = Counter(new.rejected)
    del rejected["duplicate"]
    if rejected.total() > config.max_reject_fraction * images_in:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise IgptError(
            f"{config.raw}: {rejected.total()} of {images_in} images were rejected ({reasons}), more than "
            f"max_reject_fraction {config.max_reject_fraction} allows; see {new.dataset}/quarantine, nothing was "
            "published"
        )
    if not new.samples("train"):
        raise IgptError(
            f"{config.raw}: no image is left to train on; see {new.dataset}/quarantine, nothing was published"
        )


def in_order(entries: Sequence[ShardEntry]) -> tuple[ShardEntry, ...]:
    """Shards in the order of a manifest: by split, then by number."""
    return tuple(sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.index, entry.name)))
