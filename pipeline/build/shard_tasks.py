"""What one preprocessing task does, without the scheduler that runs it: count colours, or make one shard.

A task is idempotent. It writes its shard whole, then its quarantine, then its index: a shard whose index is in place is
done, and a task that finds it there only reads what it needs for the manifest.
"""

import faulthandler
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import DatasetConfig
from pipeline.dataset import index, shards
from pipeline.dataset.snapshot import ShardEntry
from pipeline.hashing import sha256
from pipeline.images import decode, palette
from pipeline.images.decode import PASSING, Pictures, Reason, Rejection
from pipeline.images.isolation import IsolatedDecoder
from pipeline.source.raw_reads import read_images
from pipeline.store import objects

_PICTURES_PER_COUNT = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """What a task is to make of which rows of the listing."""

    dataset: str
    name: str
    split: str
    listing: pa.Table  # LISTING, in sample order
    labels: np.ndarray  # int64 [n], class numbers
    duplicate_of: list[str | None]
    """For each row the key of the image with the same bytes that is taken in its place, or None."""
    replaces: ShardEntry | None = None
    """The shard whose samples are taken over where the image is unchanged."""
    tolerant: bool = False
    """Whether an image that changed since it was listed is refused, rather than the whole task."""
    isolated: bool = False
    """Whether images are decoded in a process of their own: after a task that died."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a finished shard adds to the snapshot, and where its time went."""

    entry: ShardEntry
    reused: bool = False
    """Whether the shard was found finished."""
    taken_over: int = 0
    """Images whose samples came from the shard that it replaces."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by step: read (waiting for it), decode, quantize, write."""


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] += now - self._since
        self._since = now


class _Watchdog:
    """Ends this process when it is not fed for too long: nothing else ends a decoder that hangs.

    The task then runs again, with its decoder in a process of its own. A context manager.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._armed = 0.0

    def __enter__(self) -> "_Watchdog":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        faulthandler.cancel_dump_traceback_later()

    def feed(self) -> None:
        """Arming starts a thread; not for each image."""
        now = time.monotonic()
        if now - self._armed > self._seconds / 4:
            faulthandler.dump_traceback_later(1.25 * self._seconds, exit=True)
            self._armed = now


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What became of one row of a listing."""

    row: int
    outcome: Pictures | Rejection
    sha256: str
    """Of the raw bytes, in hex; empty where there are none."""


def decode_rows(
    listing: pa.Table,
    config: DatasetConfig,
    split: str,
    *,
    tolerant: bool,
    isolated: bool,
    stopwatch: _Stopwatch | None = None,
) -> Iterator[Decoded]:
    """Read and decode the rows of a listing, in the order of their place in storage.

    Raises SourceChangedError for an image that is not what the listing says, unless `tolerant`.
    """
    stopwatch = stopwatch or _Stopwatch()
    recipe = config.recipe(split)
    keys = listing["key"].to_pylist()
    with ExitStack() as stack:
        isolator = stack.enter_context(IsolatedDecoder(recipe, config.max_seconds)) if isolated else None
        watchdog = None if isolated else stack.enter_context(_Watchdog(config.max_seconds))
        for image in read_images(listing, tolerant=tolerant):
            stopwatch.lap("read")
            if image.refused is not None:
                yield Decoded(row=image.row, outcome=image.refused, sha256="")
                continue
            outcome: Pictures | Rejection
            if isolator is not None:
                outcome = isolator.decode(image.data, keys[image.row])
            else:
                assert watchdog is not None
                watchdog.feed()
                outcome = decode.decode(image.data, recipe, keys[image.row])
            stopwatch.lap("decode")
            yield Decoded(row=image.row, outcome=outcome, sha256=image.sha256)


def count_colours(listing: pa.Table, isolated: bool, config: DatasetConfig) -> palette.ColourHistogram:
    """Count the colours of training images; rejected ones count nothing here, their shard reports them."""
    histogram = palette.ColourHistogram()
    waiting: list[np.ndarray] = []  # a histogram's cost is the same for one picture and for many
    for decoded in decode_rows(listing, config, "train", tolerant=True, isolated=isolated):
        if isinstance(decoded.outcome, Pictures):
            waiting.append(decoded.outcome.pixels)
        if len(waiting) >= _PICTURES_PER_COUNT:
            histogram.add(np.concatenate(waiting))
            waiting = []
    if waiting:
        histogram.add(np.concatenate(waiting))
    return histogram


def make_shard(order: ShardOrder, config: DatasetConfig, table: np.ndarray) -> ShardResult:
    """Make one shard from the rows of a listing, in their order, and put it with its index in the dataset.

    `table` is the palette's lookup table, uint16 [2^24]. Raises SourceChangedError for an image that changed since it
    was listed, and IgptError when the store does not answer.
    """
    finished = _finished(order)
    if finished is not None:
        return finished
    return _Shard(order, config).make(table)


def _finished(order: ShardOrder) -> ShardResult | None:
    """The result of a shard that an earlier build finished, or None."""
    try:
        data = objects.read_bytes(objects.join(order.dataset, "index", f"{order.name}.parquet"))
    except FileNotFoundError:
        return None
    entry = ShardEntry(**index.metadata_of(data)["entry"], index_sha256=sha256(data))
    if objects.size(objects.join(order.dataset, entry.path)) != entry.bytes:
        return None
    return ShardResult(entry=entry, reused=True)


class _Shard:
    """A shard while it is made: for each row a rejection, or its tokens and its row of the index."""

    def __init__(self, order: ShardOrder, config: DatasetConfig) -> None:
        self._order, self._config = order, config
        self._listing: list[dict[str, Any]] = order.listing.to_pylist()
        count, side = len(self._listing), config.resolution
        self._crops = max(1, config.recipe(order.split).crops)
        self._tokens = np.zeros((count, self._crops, side, side), np.uint16)
        self._accepted: dict[int, dict[str, Any]] = {}
        self._rejected: dict[int, dict[str, Any]] = {}

    def make(self, table: np.ndarray) -> ShardResult:
        order, stopwatch = self._order, _Stopwatch()
        _log.info("shard %s of %s: begun with %d rows", order.name, order.dataset, len(self._listing))
        for row, key in enumerate(order.duplicate_of):
            if key is not None:
                self._reject(row, Rejection(reason=Reason.DUPLICATE, detail=f"the same bytes as image {key}"))
        taken_over = self._take_over(order.replaces) if order.replaces is not None else 0
        stopwatch.lap("read")
        left = [row for row in range(len(self._listing)) if row not in self._accepted and row not in self._rejected]
        outcomes = decode_rows(
            order.listing.take(pa.array(left, pa.int64())),
            self._config,
            order.split,
            tolerant=order.tolerant,
            isolated=order.isolated,
            stopwatch=stopwatch,
        )
        for decoded in outcomes:
            row, outcome = left[decoded.row], decoded.outcome
            if isinstance(outcome, Rejection):
                self._reject(row, outcome)
                continue
            self._tokens[row] = palette.quantize(outcome.pixels, table)
            self._accept(row, {"sha256": decoded.sha256, "width": outcome.width, "height": outcome.height})
            stopwatch.lap("quantize")
        entry = self._write()
        stopwatch.lap("write")
        counts = entry.images, taken_over, len(self._rejected)
        _log.info("shard %s of %s: %d images (%d taken over), %d refused", entry.name, order.dataset, *counts)
        return ShardResult(entry=entry, taken_over=taken_over, seconds=dict(stopwatch.seconds))

    def _accept(self, row: int, found: dict[str, Any]) -> None:
        listed = self._listing[row]
        self._accepted[row] = {
            **self._account(listed),
            "url": listed["url"],
            "offset": listed["offset"],
            "label": int(self._order.labels[row]),
            **{name: found[name] for name in ("sha256", "width", "height")},
        }

    def _reject(self, row: int, why: Rejection) -> None:
        self._rejected[row] = {
            **self._account(self._listing[row]),
            "reason": why.reason.value,
            "detail": why.detail,
        }

    @staticmethod
    def _account(listed: dict[str, Any]) -> dict[str, Any]:
        return {
            "key": listed["key"],
            "version": listed["version"],
            "uri": index.uri_of(listed["url"], listed["offset"], listed["name"]),
            "etag": listed["etag"],
            "bytes": listed["length"],
        }

    def _take_over(self, old: ShardEntry) -> int:
        """Take over what the replaced shard and its quarantine say of the images that are unchanged.

        A replaced shard that is damaged is not worth an error here: its images are made again.
        """
        dataset = self._order.dataset
        try:
            data = objects.read_bytes(objects.join(dataset, old.path))
            accepted = index.read(dataset, old.index_path).to_pylist()
            quarantined = index.read(dataset, old.quarantine_path).to_pylist() if old.quarantine_path else []
        except FileNotFoundError:
            return 0
        if sha256(data) != old.sha256 or len(accepted) != old.images:
            return 0
        view = shards.ShardView(
            np.frombuffer(data, np.uint8), samples=old.samples, side=self._config.resolution, name=old.name
        )
        old_tokens = view.tokens_NHW.reshape(old.images, self._crops, *view.tokens_NHW.shape[1:])
        rows = {(listed["key"], listed["version"]): row for row, listed in enumerate(self._listing)}
        for old_row, found in enumerate(accepted):
            row = rows.get((found["key"], found["version"]))
            if row is not None and row not in self._rejected:
                self._tokens[row] = old_tokens[old_row]
                self._accept(row, found)
        for found in quarantined:
            row = rows.get((found["key"], found["version"]))
            if row is not None and found["reason"] not in PASSING:
                self._reject(row, Rejection(reason=Reason(found["reason"]), detail=found["detail"]))
        return len(self._accepted)

    def _name(self) -> str:
        """The planned name, or one of its own where images were refused for what may be different the next time.

        So a name always stands for the same bytes, and a rerun tries those images again.
        """
        passing = sorted((r["key"], r["reason"]) for r in self._rejected.values() if r["reason"] in PASSING)
        if not passing:
            return self._order.name
        head, _, planned = self._order.name.rpartition("-")
        return f"{head}-{sha256(repr((planned, passing)).encode())[:16]}"

    def _write(self) -> ShardEntry:
        rows = sorted(self._accepted)
        name = self._name()
        side = self._config.resolution
        keys = [
            key if self._crops == 1 else f"{key}-{crop:03d}"
            for key in (self._listing[row]["key"] for row in rows)
            for crop in range(self._crops)
        ]
        labels = np.repeat(self._order.labels[rows], self._crops)
        tar = shards.encode(keys, self._tokens[rows].reshape(-1, side, side), labels)
        quarantine = index.to_bytes(list(_in_order(self._rejected)), index.QUARANTINE) if self._rejected else None
        entry: dict[str, Any] = {
            "name": name,
            "split": self._order.split,
            "samples": len(keys),
            "images": len(rows),
            "bytes": len(tar),
            "sha256": sha256(tar),
            "rejected": dict(sorted(Counter(each["reason"] for each in self._rejected.values()).items())),
            "quarantine": None if quarantine is None else name,
            "quarantine_sha256": None if quarantine is None else sha256(quarantine),
        }
        # The index tells a later build all of the entry but its own checksum.
        account = index.to_bytes(list(_in_order(self._accepted)), index.INDEX, {"entry": entry})
        made = ShardEntry(**entry, index_sha256=sha256(account))
        # The sizes are compared with the store's own before the commit, for all shards in one request.
        self._put(made.path, tar)
        if quarantine is not None and made.quarantine_path is not None:
            self._put(made.quarantine_path, quarantine)
        self._put(made.index_path, account)
        return made

    def _put(self, path: str, data: bytes) -> None:
        objects.write_bytes(objects.join(self._order.dataset, path), data)


def _in_order(rows: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (rows[row] for row in sorted(rows))
