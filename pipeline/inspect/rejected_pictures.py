"""Small pictures of some images that a snapshot rejected, as far as they can be decoded, with the reason of each."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.dataset import index, record
from pipeline.dataset.snapshot import Snapshot
from pipeline.images.decode import Pictures, Recipe
from pipeline.images.isolation import IsolatedDecoder
from pipeline.progress import silent
from pipeline.source import containers, names
from pipeline.source.members import ScanOptions
from pipeline.source.raw_reads import read_images
from pipeline.source.scan_cache import ScanCache
from pipeline.store import objects

PER_REASON = 8
_SIDE = 96  # of a picture, in pixels
_LARGEST_FILE = 32 * 1024 * 1024  # bytes that are read for one picture
_DECODE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class RejectedPicture:
    """A rejected image: why, and what can be seen of it."""

    key: str
    uri: str
    """Where it is: the object, or container#member."""
    reason: str
    detail: str
    pixels: np.ndarray | None
    """Its centre square, uint8 [S, S, 3], of a damaged one what is left of it; None where nothing can be decoded."""


def rejected_pictures(chosen: Snapshot, config: DatasetConfig, per_reason: int = PER_REASON) -> list[RejectedPicture]:
    """Some rejected images of each reason, by reason. `config` is that of the build.

    A task decodes them, with the key of the step that goes on: what damages a decoder is among them.
    """
    rows = _some_rows(chosen, per_reason)
    places = _Places(config)
    listing = [places.listed(row) for row in rows]
    readable = [number for number, place in enumerate(listing) if place is not None]
    pixels: dict[int, np.ndarray] = {}
    recipe = Recipe(resolution=_SIDE, smallest_side=1, max_pixels=config.max_pixels)
    if readable:
        table = pa.Table.from_pylist([listing[number] or {} for number in readable])
        seconds = min(config.max_seconds, _DECODE_SECONDS)
        for _, decoded in tasks.map_tasks(_decode, [(table,)], shared=(recipe, seconds)):
            pixels |= {readable[row]: picture for row, picture in decoded.items()}
    return [
        RejectedPicture(
            **{name: row[name] or "" for name in ("key", "uri", "reason", "detail")}, pixels=pixels.get(number)
        )
        for number, row in enumerate(rows)
    ]


def _decode(listing: pa.Table, recipe: Recipe, seconds: float) -> dict[int, np.ndarray]:
    """What can be seen of images, uint8 [S, S, 3], by their rows in a listing."""
    keys, pixels = listing["key"].to_pylist(), {}
    with IsolatedDecoder(recipe, seconds, damaged=True) as decoder:
        for raw in read_images(listing, tolerant=True):
            outcome = decoder.decode(raw.data, keys[raw.row]) if raw.rejection is None else None
            if isinstance(outcome, Pictures):
                pixels[raw.row] = outcome.pixels[0]
    return pixels


def _some_rows(chosen: Snapshot, per_reason: int) -> list[dict[str, Any]]:
    """Up to so many rows of the quarantine of each reason, by reason; reads no more files than needed."""
    addresses = record.of_addresses(chosen)
    wanted = {reason: min(count, per_reason) for reason, count in chosen.rejected.items()}
    chosen_rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for shard in chosen.shards:
        missing = Counter({reason: wanted[reason] - len(chosen_rows[reason]) for reason in shard.rejected})
        if shard.quarantine_path is None or not +missing:
            continue
        table = index.read(chosen.dataset, shard.quarantine_path)
        for reason, count in (+missing).items():
            some = table.filter(pc.equal(table["reason"], reason)).slice(0, count)
            chosen_rows[reason] += index.with_addresses(some, addresses).to_pylist()
    return [row for reason in sorted(chosen_rows) for row in chosen_rows[reason]]


class _Places:
    """Where rejected images are, which a quarantine says for people: an object, or container#name."""

    def __init__(self, config: DatasetConfig) -> None:
        self._config, self._root = config, record.root_of(config.raw)
        self._members: dict[str, pa.Table | None] = {}

    def listed(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """A row of a quarantine as one of a listing; None when it is too large, or not to be read by itself."""
        if (row["bytes"] or 0) > _LARGEST_FILE:
            return None
        place = self._member(row["uri"])
        if place is None:
            return {"key": row["key"], "url": row["uri"], "offset": -1, "length": row["bytes"], "etag": row["etag"]}
        container, name = place
        if containers.is_sequential(container):
            return None
        if container not in self._members:
            self._members[container] = self._scan(container)
        members = self._members[container]
        places = [] if members is None else members.filter(pc.equal(members["name"], name)).to_pylist()
        columns = ("offset", "length", "etag")
        return (
            {"key": row["key"], "url": container, **{column: places[0][column] for column in columns}}
            if places
            else None
        )

    def _member(self, uri: str) -> tuple[str, str] | None:
        """The container of an image and its name there; None for an object of its own."""
        for separator in re.finditer("#", uri):
            container, name = uri[: separator.start()], uri[separator.end() :]
            prefix = "" if container == self._root else f"{names.below(self._root, container)}/"
            if containers.is_container(container) and name.startswith(prefix):
                return container, name[len(prefix) :]
        return None

    def _scan(self, container: str) -> pa.Table | None:
        """The members of a container, by the scan that the build has kept; None when it is gone."""
        config = self._config
        files = [file for file in objects.list_files(container) if file.url == container]
        dataset, options = objects.absolute(config.dataset), ScanOptions.of(config)
        scans = ScanCache(dataset, self._root, options, keep=False, fresh=False, progress=silent)
        return next(iter(scans(files)), None)
