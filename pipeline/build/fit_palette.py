"""Fit the palette of a dataset: tasks count the colours of sampled training images, the driver clusters the counts."""

import numpy as np
import pyarrow as pa

from pipeline.build import plan
from pipeline.build.decode_rows import decode_rows
from pipeline.build.source_state import SourceState
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.images.decode import Pictures
from pipeline.partition import divide
from pipeline.progress import Progress

_IMAGES_PER_TASK = 500
_PICTURES_PER_COUNT = 64


def fit_palette(config: DatasetConfig, state: SourceState, progress: Progress) -> np.ndarray:
    """The palette of a source, float32 [K, 3]. Raises IgptError when no sampled image can be decoded."""
    rows = plan.sample_for_palette(state.rows, state.splits, config)
    parts = divide(rows, _IMAGES_PER_TASK)
    histogram = palette.ColourHistogram()
    done = 0
    progress("palette", 0, len(rows), "images")
    calls = ((table, False) for table in state.listing.gather(parts))
    counted = tasks.map_tasks(count_colours, calls, shared=(config,), after_crash=lambda call: (call[0], True))
    for number, counts in counted:
        histogram.merge(counts)
        done += len(parts[number])
        progress("palette", done, len(rows), "images")
    if not histogram.counts.any():
        raise IgptError(f"{config.raw}: none of {len(rows)} sampled images could be decoded; is this the right prefix?")
    return palette.fit(histogram, config.colours, config.seed)


def count_colours(listing: pa.Table, isolated: bool, config: DatasetConfig) -> palette.ColourHistogram:
    """Count the colours of training images. Rejected images are skipped: they are recorded with their shard."""
    histogram = palette.ColourHistogram()
    waiting: list[np.ndarray] = []  # counting costs the same for one picture as for many
    for decoded in decode_rows(listing, config, "train", tolerant=True, isolated=isolated):
        if isinstance(decoded.outcome, Pictures):
            waiting.append(decoded.outcome.pixels)
        if len(waiting) >= _PICTURES_PER_COUNT:
            histogram.add(np.concatenate(waiting))
            waiting = []
    if waiting:
        histogram.add(np.concatenate(waiting))
    return histogram
