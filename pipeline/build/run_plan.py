"""Run a plan: one task per shard on the Ray cluster, and check before the commit that the counts add up."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.build.count_pixels import PixelDifference
from pipeline.build.plan import ShardPlan
from pipeline.build.shard_tasks import ShardResult, ShardTask, make_shard
from pipeline.build.source_state import SourceState
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.dataset import index
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.images.palette_table import lookup_table
from pipeline.progress import Progress


def make_shards(
    state: SourceState,
    plans: Sequence[ShardPlan],
    config: DatasetConfig,
    palette_K3: np.ndarray,
    pixels: PixelDifference,
    progress: Progress,
    *,
    tolerant: bool,
    trust_tags: bool = True,
    retry: bool = False,
    remade: Collection[str] = (),
) -> list[ShardResult]:
    """Run one task per shard; returns the results in the order of the plans. Their pixel counts go into `pixels`.

    `tolerant`, `trust_tags` and `retry` are those of the tasks; `remade` has the names of the shards to be made anew.

    Raises IgptError when a shard and its quarantine do not contain all images of the plan.
    """
    planned = np.concatenate([np.zeros(0, np.int64), *(shard.rows for shard in plans)])
    if len(np.unique(planned)) != len(planned):
        raise AssertionError("the plan has an image twice")
    progress("shards", 0, len(planned), "images")
    finished = tasks.map_tasks(
        make_shard,
        (
            (
                replace(
                    task,
                    trust_tags=trust_tags,
                    retry=retry,
                    remake=task.replaces is not None and task.replaces.name in remade,
                ),
            )
            for task in shard_tasks(state, plans, tolerant)
        ),
        shared=(config, lookup_table(palette_K3), state.tombstones),
        after_crash=lambda call: (replace(call[0], isolated=True),),
    )
    results: dict[int, ShardResult] = {}
    images_done = 0
    for number, result in finished:
        wanted = len(plans[number].rows)
        if (accounted := index.accounted(result.entry) + len(result.erased)) != wanted:
            raise IgptError(
                f"{state.dataset}: shard {result.entry.name} accounts for {accounted} of {wanted} "
                f"images; delete {result.entry.index_path} and run the build again"
            )
        results[number] = pixels.collect(result, plans[number].replaces)
        images_done += wanted
        progress("shards", images_done, len(planned), f"images, {len(results)} of {len(plans)} shards")
    return [results[number] for number in range(len(plans))]


def shard_tasks(state: SourceState, plans: Sequence[ShardPlan], tolerant: bool) -> Iterator[ShardTask]:
    """The inputs of the tasks for some shards; an iterator, so that few are in memory at a time."""
    keys = state.rows.keys
    for shard, listing in zip(plans, state.listing.gather([shard.rows for shard in plans]), strict=True):
        kept_rows = state.duplicate_of[shard.rows]
        kept_keys = keys.take(np.maximum(kept_rows, 0)).text()
        # The version of a duplicate is not that of the listing, so that it changes when the image itself is kept.
        versions = pa.array(state.rows.versions[shard.rows], pa.uint64())
        listing = listing.set_column(listing.schema.get_field_index("version"), "version", versions)
        yield ShardTask(
            dataset=state.dataset,
            name=shard.name,
            split=shard.split,
            listing=listing,
            labels=state.rows.labels[shard.rows].astype(np.int64),
            duplicate_of=[key if row >= 0 else None for row, key in zip(kept_rows, kept_keys, strict=True)],
            replaces=shard.replaces,
            tolerant=tolerant,
            raw_root=state.raw_root,
            kept_types=state.kept_types,
        )


def check_counts(new: Snapshot, images_in: int, config: DatasetConfig) -> None:
    """Raise IgptError when an image is missing or counted twice, or when too many were rejected.

    Duplicates do not count as rejected.
    """
    accounted = sum(index.accounted(shard) for shard in new.shards)
    if accounted != images_in:
        raise IgptError(
            f"{new.dataset}: the shards account for {accounted} of {images_in} images, nothing was published; build "
            "into another folder, and report this"
        )
    rejected = Counter(new.rejected)
    del rejected["duplicate"], rejected["near_duplicate"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
    if rejected.total() > config.max_reject_fraction * images_in:
        raise IgptError(
            f"{config.raw}: {rejected.total()} of {images_in} images were rejected ({reasons}), more than "
            f"max_reject_fraction {config.max_reject_fraction} allows; see {new.dataset}/quarantine, nothing was "
            "published"
        )
    if not new.samples("train"):
        raise IgptError(
            f"{config.raw}: no image is left to train on of {images_in} ({reasons or 'all are held out'}); see "
            f"{new.dataset}/quarantine, nothing was published"
        )
