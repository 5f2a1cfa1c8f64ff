"""Images with the same bytes: of each set one is taken, the others are accounted for as duplicates of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.cluster import tasks
from pipeline.dataset import index
from pipeline.dataset.keys import Keys, match
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.partition import divide
from pipeline.progress import Progress
from pipeline.source.listing import Listing, Rows
from pipeline.source.raw_reads import read_images

_ROWS_AT_ONCE = 50_000
_ROWS_PER_TASK = 1000


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """The upper 128 bits of the SHA-256 of images, [N]; known says of which."""

    high: np.ndarray  # uint64
    low: np.ndarray  # uint64
    known: np.ndarray  # bool

    def enter(self, rows: np.ndarray, digests: list[str]) -> None:
        raw = np.frombuffer(bytes.fromhex("".join(digest[:32] for digest in digests)), ">u8").reshape(-1, 2)
        self.high[rows], self.low[rows], self.known[rows] = raw[:, 0], raw[:, 1], True


def find_duplicates(
    listing: Listing, rows: Rows, splits: np.ndarray, parent: Snapshot | None, progress: Progress
) -> np.ndarray:
    """For every image the row that is taken in its place, -1 where it is taken itself; int64 [N].

    Of images with the same bytes the one that the parent snapshot has is taken, else one of the test split before one
    of validation before one to train on, so that nothing that is held out is trained on.
    """
    contents = _Contents(
        high=np.zeros(len(rows), np.uint64), low=np.zeros(len(rows), np.uint64), known=np.zeros(len(rows), bool)
    )
    had = np.zeros(len(rows), bool)
    if parent is not None:
        _enter_known(contents, had, rows, parent)
    _enter_members(contents, listing, rows)
    _hash_others(contents, listing, progress)
    precedence = np.array([{"test": 0, "validation": 1, "train": 2}[name] for name in SPLITS])[splits]
    order = np.lexsort((rows.keys.high, precedence, ~had, contents.low, contents.high))
    order = order[contents.known[order]]
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(contents.high[order]) != 0) | (np.diff(contents.low[order]) != 0)
    taken = order[first][np.cumsum(first) - 1]
    duplicate_of = np.full(len(rows), -1)
    duplicate_of[order] = np.where(first, -1, taken)
    return duplicate_of


def _enter_known(contents: _Contents, had: np.ndarray, rows: Rows, parent: Snapshot) -> None:
    """What the parent's indexes say of images that are unchanged."""
    columns = ("key", "version", "sha256")
    tables = index.read_all(parent.dataset, [shard.index_path for shard in parent.shards], columns)
    for table in tables:
        places = match(Keys.of(table["key"].to_pylist()), rows.keys)
        same = (places >= 0) & (rows.versions[places] == table["version"].to_numpy())
        contents.enter(places[same], table["sha256"].filter(pa.array(same)).to_pylist())
        had[places[same]] = True


def _enter_members(contents: _Contents, listing: Listing, rows: Rows) -> None:
    """Members of containers are known by their content already."""
    members = np.flatnonzero((rows.groups >= 0) & ~contents.known)
    for start in range(0, len(members), _ROWS_AT_ONCE):
        part = members[start : start + _ROWS_AT_ONCE]
        contents.enter(part, listing.take(part)["etag"].to_pylist())


def _hash_others(contents: _Contents, listing: Listing, progress: Progress) -> None:
    left = np.flatnonzero(~contents.known)
    if not len(left):
        return
    parts = divide(left, _ROWS_PER_TASK)
    done = 0
    progress("hash", 0, len(left), "images")

    def calls() -> Iterator[tuple[pa.Table]]:
        return ((table,) for table in listing.gather(parts))

    for number, digests in tasks.map_tasks(_digests, calls()):
        readable = [place for place, digest in enumerate(digests) if digest]
        contents.enter(parts[number][readable], [digests[place] for place in readable])
        done += len(digests)
        progress("hash", done, len(left), "images")


def _digests(listing: pa.Table) -> list[str]:
    """SHA-256, in hex, of the images of a listing; empty for one that cannot be read."""
    digests = [""] * listing.num_rows
    for image in read_images(listing, tolerant=True):
        digests[image.row] = image.sha256
    return digests
