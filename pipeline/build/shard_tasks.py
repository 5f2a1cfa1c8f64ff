"""The task that makes one shard, independent of the scheduler.

It is idempotent. It writes the shard, then its quarantine, then its index: a shard with an index is finished, and a
task that finds one only reads the entry for the manifest.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.build.decode_rows import Stopwatch, current_rule, decode_rows
from pipeline.config import DatasetConfig
from pipeline.dataset import erasures, index, kept_columns, pixel_counts, shards
from pipeline.dataset.decoding import FIRST_RULE
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.record import relative_address
from pipeline.dataset.snapshot import ShardEntry
from pipeline.hashing import sha256
from pipeline.images import palette
from pipeline.images.rejection import TRANSIENT, Reason, Rejection
from pipeline.store import objects

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """The input of a task that makes one shard from some rows of the listing."""

    dataset: str
    name: str
    split: str
    listing: pa.Table  # LISTING, in sample order
    labels: np.ndarray  # int64 [n], class numbers
    duplicate_of: list[str | None]
    """For each row the key of the image with the same bytes that is kept instead, or None."""
    replaces: ShardEntry | None = None
    """The shard from which the samples of unchanged images are copied."""
    tolerant: bool = False
    """Whether an image that changed since it was listed is rejected, rather than failing the task."""
    isolated: bool = False
    """Whether images are decoded in a child process: after the task has died once."""
    raw_root: str
    """Root of the raw images, below which the addresses of the index are."""
    kept_types: Mapping[str, str] = field(default_factory=dict)
    """The type of each kept column."""
    trust_tags: bool = True
    """Whether an image with the etag and size of before has the bytes of before: another label needs no decoding."""
    remake: bool = False
    """Whether samples that were decoded by another rule than today's are made anew rather than copied."""
    retry: bool = False
    """Whether rejected images are decoded once more, because another rule than today's rejected them."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """A finished shard's entry in the snapshot, and the time it took."""

    entry: ShardEntry
    reused: bool = False
    """Whether an earlier build had finished the shard."""
    taken_over: int = 0
    """Number of images whose samples were copied from the replaced shard."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by step: read (waiting for data), decode, quantize, write."""
    erased: tuple[str, ...] = ()
    """Keys of images that are left out, because their bytes are those of erased ones."""
    added_pixels: np.ndarray | None = None
    """Pixel counts of the shard less those of the one that it replaces, int64 [T, K]; None: not counted."""


def make_shard(
    task: ShardTask, config: DatasetConfig, table: np.ndarray, without: Tombstones = erasures.NONE
) -> ShardResult:
    """Make one shard from the rows of a listing, in their order, and put it into the dataset with its index.

    `table` is the palette's lookup table, uint16 [2^24]; what has bytes in `without` was erased, and is left out.
    Raises SourceChangedError for an image that changed since it was listed, and IgptError when the store does not
    respond.
    """
    finished = _finished(task)
    if finished is not None:
        return finished
    return _Shard(task, config, without).make(table)


def _finished(task: ShardTask) -> ShardResult | None:
    """The result of a shard that an earlier build finished, or None."""
    try:
        data = objects.read_bytes(objects.join(task.dataset, "index", f"{task.name}.parquet"))
    except FileNotFoundError:
        return None
    entry = ShardEntry.from_fields(index.metadata_of(data)["entry"], index_sha256=sha256(data))
    if objects.size(objects.join(task.dataset, entry.path)) != entry.bytes:
        return None
    return ShardResult(entry=entry, reused=True)


class _Shard:
    """A shard in the making: for each row a rejection, or its tokens and its row of the index."""

    def __init__(self, task: ShardTask, config: DatasetConfig, without: Tombstones) -> None:
        self._task, self._config, self._without = task, config, without
        self._erased: list[str] = []  # keys
        self._listing: list[dict[str, Any]] = task.listing.to_pylist()
        self._rows = {listed["key"]: row for row, listed in enumerate(self._listing)}
        count, side = len(self._listing), config.resolution
        self._crops = max(1, config.recipe(task.split).crops)
        self._tokens = np.zeros((count, self._crops, side, side), np.uint16)
        self._accepted: dict[int, dict[str, Any]] = {}
        self._rejected: dict[int, dict[str, Any]] = {}
        self._rule = asdict(current_rule())
        self._index_schema = index.with_columns(index.INDEX, task.kept_types)
        self._quarantine_schema = index.with_columns(index.QUARANTINE, task.kept_types)
        self._kept_names = self._index_schema.names[len(index.INDEX) :]
        # Of the replaced shard, int64 [T, K]; 0 without one; None when it could not be read.
        self._replaced_pixels: np.ndarray | int | None = 0 if task.replaces is None else None

    def make(self, table: np.ndarray) -> ShardResult:
        task, stopwatch = self._task, Stopwatch()
        _log.info("shard %s of %s: started with %d rows", task.name, task.dataset, len(self._listing))
        for row, key in enumerate(task.duplicate_of):
            if key is not None:
                self._reject(row, Rejection(reason=Reason.DUPLICATE, detail=f"the same bytes as image {key}"))
        taken_over = self._take_over(task.replaces) if task.replaces is not None else 0
        stopwatch.lap("read")
        pending = [row for row in range(len(self._listing)) if row not in self._accepted and row not in self._rejected]
        outcomes = decode_rows(
            task.listing.take(pa.array(pending, pa.int64())),
            self._config,
            task.split,
            tolerant=task.tolerant,
            isolated=task.isolated,
            stopwatch=stopwatch,
        )
        for decoded in outcomes:
            row, outcome = pending[decoded.row], decoded.outcome
            if self._without.has_content(decoded.sha256):
                self._erased.append(self._listing[row]["key"])
                continue
            if isinstance(outcome, Rejection):
                self._reject(row, outcome, decoded.sha256)
                continue
            self._tokens[row] = palette.quantize(outcome.pixels, table)
            size = {"width": outcome.width, "height": outcome.height}
            self._accept(row, {"sha256": decoded.sha256, **size, **self._rule})
            stopwatch.lap("quantize")
        rows = sorted(self._accepted)
        tokens_NHW = self._tokens[rows].reshape(-1, self._config.resolution, self._config.resolution)
        entry = self._write(rows, tokens_NHW)
        added_pixels = self._added_pixels(tokens_NHW)
        stopwatch.lap("write")
        _log.info(
            "shard %s of %s: %d images (%d taken over), %d rejected",
            entry.name,
            task.dataset,
            entry.images,
            taken_over,
            len(self._rejected),
        )
        return ShardResult(
            entry=entry,
            taken_over=taken_over,
            seconds=dict(stopwatch.seconds),
            erased=tuple(sorted(self._erased)),
            added_pixels=added_pixels,
        )

    def _added_pixels(self, tokens_NHW: np.ndarray) -> np.ndarray | None:
        config, replaced = self._config, self._replaced_pixels
        if replaced is None or not pixel_counts.are_kept(config.resolution, config.colours):
            return None
        return pixel_counts.count(tokens_NHW, config.colours) - replaced

    def _accept(self, row: int, properties: dict[str, Any]) -> None:
        listed = self._listing[row]
        self._accepted[row] = {
            **self._identity(listed),
            "url": relative_address(self._task.raw_root, listed["url"]),
            "offset": listed["offset"],
            "label": int(self._task.labels[row]),
            **{name: properties[name] for name in ("sha256", "width", "height")},
            # Indexes of schema 2 do not name the rule.
            "rule": properties.get("rule", FIRST_RULE.rule),
            "pillow": properties.get("pillow", FIRST_RULE.pillow),
        }
        if "etag" in properties:
            self._accepted[row]["etag"] = properties["etag"]  # the one that the version was computed of

    def _reject(self, row: int, rejection: Rejection, checksum: str | None = None) -> None:
        self._rejected[row] = {
            **self._identity(self._listing[row]),
            "sha256": checksum or None,
            "reason": rejection.reason.value,
            "detail": rejection.detail,
        }

    def _identity(self, listed: dict[str, Any]) -> dict[str, Any]:
        """The columns that index and quarantine have in common."""
        uri = index.uri_of(listed["url"], listed["offset"], listed["name"])
        return {
            "key": listed["key"],
            "version": listed["version"],
            "uri": relative_address(self._task.raw_root, uri),
            "etag": listed["etag"],
            "bytes": listed["length"],
            **dict(zip(self._kept_names, kept_columns.values(listed["kept"], self._task.kept_types), strict=True)),
        }

    def _take_over(self, old: ShardEntry) -> int:
        """Copy samples and rejections of unchanged images from the replaced shard; returns the number of images.

        If the replaced shard is missing or damaged, its images are decoded again.
        """
        dataset = self._task.dataset
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
        if pixel_counts.are_kept(self._config.resolution, self._config.colours):
            self._replaced_pixels = pixel_counts.count(view.tokens_NHW, self._config.colours)
        old_tokens = view.tokens_NHW.reshape(old.images, self._crops, *view.tokens_NHW.shape[1:])
        for old_row, image in enumerate(accepted):
            row = self._row_with_the_bytes_of(image)
            is_made_anew = self._task.remake and any(image.get(name) != of for name, of in self._rule.items())
            if row is not None and row not in self._rejected and not is_made_anew:
                self._tokens[row] = old_tokens[old_row]
                self._accept(row, image)
        for image in quarantined if not self._task.remake else ():
            row = self._row_with_the_bytes_of(image)
            reason = Reason(image["reason"])
            # Those that are duplicates still are rejected already.
            is_copied = reason not in (*TRANSIENT, Reason.DUPLICATE)
            if self._task.retry:
                is_copied = reason == Reason.NEAR_DUPLICATE
            if row is not None and row not in self._rejected and is_copied:
                self._reject(row, Rejection(reason=reason, detail=image["detail"]), image.get("sha256"))
        return len(self._accepted)

    def _row_with_the_bytes_of(self, image: dict[str, Any]) -> int | None:
        """The row of an image in the replaced shard or its quarantine, if it is there and its bytes did not change."""
        row = self._rows.get(image["key"])
        if row is None:
            return None
        listed = self._listing[row]
        same_tag = self._task.trust_tags and (listed["etag"], listed["length"]) == (image["etag"], image["bytes"])
        return row if same_tag or listed["version"] == image["version"] else None

    def _name(self) -> str:
        """The planned name, or another one if images were rejected for a transient reason, or left out.

        So a name always stands for the same bytes, and a rerun tries those images again.
        """
        transient = sorted((r["key"], r["reason"]) for r in self._rejected.values() if r["reason"] in TRANSIENT)
        if not transient and not self._erased:
            return self._task.name
        head, _, planned = self._task.name.rpartition("-")
        others = (transient, sorted(self._erased)) if self._erased else transient
        return f"{head}-{sha256(repr((planned, others)).encode())[:16]}"

    def _write(self, rows: list[int], tokens_NHW: np.ndarray) -> ShardEntry:
        name = self._name()
        keys = [
            key if self._crops == 1 else f"{key}-{crop:03d}"
            for key in (self._listing[row]["key"] for row in rows)
            for crop in range(self._crops)
        ]
        labels = np.repeat(self._task.labels[rows], self._crops)
        tar = shards.encode(keys, tokens_NHW, labels)
        rejected = list(_in_order(self._rejected))
        quarantine = index.to_bytes(rejected, self._quarantine_schema) if rejected else None
        rules = Counter((image["rule"], image["pillow"]) for image in self._accepted.values())
        entry: dict[str, Any] = {
            "name": name,
            "split": self._task.split,
            "samples": len(keys),
            "images": len(rows),
            "bytes": len(tar),
            "sha256": sha256(tar),
            "rejected": dict(sorted(Counter(image["reason"] for image in self._rejected.values()).items())),
            "quarantine": None if quarantine is None else name,
            "quarantine_sha256": None if quarantine is None else sha256(quarantine),
            "decoding": [
                {"rule": rule, "pillow": pillow, "images": count}
                for (rule, pillow), count in sorted(rules.items(), key=lambda item: (item[0][0], item[0][1] or ""))
            ],
        }
        # From the index a later build reads the whole entry, except the checksum of the index.
        accepted = list(_in_order(self._accepted))
        rows_of_index = index.to_bytes(accepted, self._index_schema, {"entry": entry})
        shard = ShardEntry.from_fields(entry, index_sha256=sha256(rows_of_index))
        # The commit compares the sizes with those in the store, for all shards in one listing.
        self._put(shard.path, tar)
        if quarantine is not None and shard.quarantine_path is not None:
            self._put(shard.quarantine_path, quarantine)
        self._put(shard.index_path, rows_of_index)
        return shard

    def _put(self, path: str, data: bytes) -> None:
        objects.write_bytes(objects.join(self._task.dataset, path), data)


def _in_order(rows: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (rows[row] for row in sorted(rows))
