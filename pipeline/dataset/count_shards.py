"""Counts the pixels of shards in Ray tasks: those of new shards in a build, of a whole split in an older snapshot.

No shard is read in the calling process, which holds a sum and the counts of one task, whatever the number of shards.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.cluster import tasks
from pipeline.dataset import measured, pixel_counts, verified_shards
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent

# Few shards are counted by as many tasks; of many, a task counts some, so that fewer counts travel.
_FEW_SHARDS = 64
_MOST_SHARDS_PER_TASK = 32


def of_split(
    data: Snapshot, split: str, progress: Progress = silent, run: Callable[..., Any] | None = None
) -> np.ndarray:
    """How often each colour is at each position of a split's samples, int64 [T, K].

    A snapshot that has no counts, because it is older, they are large or their file is lost, is counted once: the
    result is kept beside the dataset (measured.py). `run` runs the tasks, by default on the cluster. Raises IgptError
    when the split has no samples, or a shard is gone or damaged.
    """
    shards = data.of_split(split)
    with suppress(IgptError):  # the file is gone or damaged, which `igpt dataset verify` tells
        counts_TK = data.counted_pixels(split)
        if counts_TK is not None:
            return counts_TK
    name = f"pixel-counts-{split}.npy"
    kept_TK = _parse(measured.read(data, name), data, split)
    if kept_TK is not None:
        return kept_TK
    counts_TK = total(data, shards, progress, run)
    if counts_TK is None:
        raise IgptError(
            f"{data.dataset}: a shard of the {split} split is gone or damaged; `igpt dataset verify {data.dataset}` "
            "says which, then build the dataset again"
        )
    measured.keep(data, name, pixel_counts.to_bytes(counts_TK))
    return counts_TK


def _parse(content: bytes | None, data: Snapshot, split: str) -> np.ndarray | None:
    """Kept counts, int64 [T, K]; None unless they count each sample once at every position."""
    if content is None:
        return None
    try:
        counts_TK = np.load(io.BytesIO(content), allow_pickle=False).astype(np.int64)
    except (ValueError, EOFError):
        return None
    whole = counts_TK.shape == (data.resolution**2, data.colours) and (counts_TK.sum(1) == data.samples(split)).all()
    return counts_TK if whole else None


def total(
    of: Snapshot, shards: Sequence[ShardEntry], progress: Progress, run: Callable[..., Any] | None = None
) -> np.ndarray | None:
    """The counts of some shards together, int64 [T, K]; None if one is gone or damaged."""
    counts_TK = np.zeros((of.resolution**2, of.colours), np.int64)
    if not shards:
        return counts_TK
    size = min(_MOST_SHARDS_PER_TASK, max(1, len(shards) // _FEW_SHARDS))
    groups = [shards[start : start + size] for start in range(0, len(shards), size)]
    progress("count", 0, len(shards), "shards")
    # Without its manifest, which has an entry for each shard.
    shared = (replace(of, shards=()),)
    done, complete = 0, True
    for number, group_TK in (run or tasks.map_tasks)(_count_group, ((group,) for group in groups), shared=shared):
        if group_TK is None:
            complete = False
        else:
            counts_TK += group_TK
        done += len(groups[number])
        progress("count", done, len(shards), "shards")
    return counts_TK if complete else None


def _count_group(shards: Sequence[ShardEntry], of: Snapshot) -> np.ndarray | None:
    """The counts of the shards of a task, uint32 [T, K]; None if one is gone or damaged."""
    counts_TK = np.zeros((of.resolution**2, of.colours), np.uint32)
    for shard in shards:
        try:
            view = verified_shards.read(of, shard)
        except IgptError:
            return None
        counts_TK += pixel_counts.count(view.tokens_NHW, of.colours).astype(np.uint32)
    return counts_TK
