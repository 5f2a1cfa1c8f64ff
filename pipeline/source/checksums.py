"""SHA-256 of images of a listing, computed by tasks."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.cluster import tasks
from pipeline.partition import divide
from pipeline.progress import Progress
from pipeline.source.listing import Listing
from pipeline.source.raw_reads import read_images

_ROWS_PER_TASK = 1000


def checksums_of(listing: Listing, rows: np.ndarray, progress: Progress) -> Iterator[tuple[int, str]]:
    """Read rows of a listing, [n]; yields the place of each among them and its SHA-256 in hex, in no particular order.

    The checksum is empty for an image that cannot be read.
    """
    if not len(rows):
        return
    parts = divide(np.arange(len(rows)), _ROWS_PER_TASK)
    done = 0
    progress("hash", 0, len(rows), "images")

    def calls() -> Iterator[tuple[pa.Table]]:
        return ((table,) for table in listing.gather([rows[part] for part in parts]))

    for number, checksums in tasks.map_tasks(_checksums, calls()):
        yield from zip(parts[number].tolist(), checksums, strict=True)
        done += len(checksums)
        progress("hash", done, len(rows), "images")


def _checksums(listing: pa.Table) -> list[str]:
    checksums = [""] * listing.num_rows
    for image in read_images(listing, tolerant=True):
        checksums[image.row] = image.sha256
    return checksums
