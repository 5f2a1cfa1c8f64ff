"""Writes a shard anew from the samples of others, as they are: several as one, or one without some of its images."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset import index, pixel_counts, shards, verified_shards
from pipeline.dataset.decoding import FIRST_RULE
from pipeline.dataset.record import Record, relative_address
from pipeline.dataset.shards import KEY_LENGTH
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.store import objects

_METADATA_KEY = b"igpt"
_ERASED_DETAIL = "looks like an image that was erased"


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """A shard to be made of others of its split."""

    name: str
    """Always stands for the same pieces without the same images."""
    pieces: tuple[ShardEntry, ...]
    without: frozenset[str] = field(default=frozenset(), repr=False)
    """Keys of images that are left out, from shard and quarantine."""


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A shard that was made of others; nothing is left of one whose images are all left out."""

    entry: ShardEntry | None
    left_out_pixels: np.ndarray | None = None
    """Pixel counts of the samples that were left out, int64 [T, K]; None: there are none, or they are not counted."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The images of a piece that stay."""

    accepted: pa.Table  # [n]
    quarantined: pa.Table | None
    tokens: np.ndarray  # uint16 [n, crops, H, W]
    labels: np.ndarray  # int64 [n]
    left_out: np.ndarray  # uint16 [m, H, W]


def assemble(assembly: Assembly, of: Snapshot, addresses: Record | None) -> Assembled:
    """Make a shard from its pieces, which are shards of a snapshot, and put it with its tables into the dataset.

    Images of several pieces come in the order of their keys, which are hashes, those of one as they were. `of` needs
    no shards. Raises IgptError when a file is missing or damaged, or when pieces have other addresses than a record
    can tell.
    """
    parts = [_read(piece, assembly.without, of, addresses) for piece in assembly.pieces]
    accepted = _joined([part.accepted for part in parts])
    quarantines = [part.quarantined for part in parts if part.quarantined is not None and len(part.quarantined)]
    left_out = np.concatenate([part.left_out for part in parts])
    pixels = None
    if len(left_out) and pixel_counts.are_kept(of.resolution, of.colours):
        pixels = pixel_counts.count(left_out, of.colours)
    if not len(accepted) and not quarantines:
        return Assembled(entry=None, left_out_pixels=pixels)
    filled = [part for part in parts if len(part.tokens)] or parts[:1]
    if len({part.tokens.shape[1] for part in filled}) > 1:
        raise IgptError(f"{of.dataset}: {assembly.pieces[0].name} and others have different numbers of crops")
    tokens, labels = (np.concatenate([getattr(part, name) for part in filled]) for name in ("tokens", "labels"))
    if len(parts) > 1:
        order = np.argsort(np.array(accepted["key"].to_pylist(), str), kind="stable")
        accepted, tokens, labels = accepted.take(order), tokens[order], labels[order]
    quarantined = _joined(quarantines).sort_by("key") if len(quarantines) > 1 else next(iter(quarantines), None)
    return Assembled(entry=_write(assembly, of.dataset, accepted, quarantined, tokens, labels), left_out_pixels=pixels)


def _read(piece: ShardEntry, without: frozenset[str], of: Snapshot, addresses: Record | None) -> _Part:
    table = _table(of, piece.index_path, piece.index_sha256, addresses)
    quarantined = None
    if piece.quarantine_path is not None:
        quarantined = _table(of, piece.quarantine_path, str(piece.quarantine_sha256), addresses)
        quarantined = _without(quarantined, without)
    view = verified_shards.read(of, piece)
    side, crops = of.resolution, piece.samples // piece.images if piece.images else 1
    tokens = view.tokens_NHW.reshape(piece.images, crops, side, side)
    keys = table["key"].to_pylist()
    if [key.decode()[:KEY_LENGTH] for key in view.keys_N[::crops].tolist()] != keys:
        raise IgptError(f"{of.dataset}: {piece.index_path} is not the index of its shard; see `igpt dataset verify`")
    kept = np.array([key not in without for key in keys], bool)
    return _Part(
        accepted=table.filter(pa.array(kept)),
        quarantined=quarantined,
        tokens=tokens[kept],
        labels=view.labels_N.reshape(piece.images, crops)[kept, 0] if piece.images else view.labels_N,
        left_out=tokens[~kept].reshape(-1, side, side),
    )


def _table(of: Snapshot, path: str, checksum: str, addresses: Record | None) -> pa.Table:
    """An index or a quarantine, its addresses relative to the root of the raw images where that is known."""
    try:
        data = objects.read_bytes(objects.join(of.dataset, path))
    except FileNotFoundError:
        raise IgptError(f"{of.dataset}: {path} is missing; see `igpt dataset verify`") from None
    if sha256(data) != checksum:
        raise IgptError(f"{of.dataset}: {path} is damaged (another checksum); see `igpt dataset verify`")
    table = index.from_bytes(data)
    if not index.has_relative_addresses(table) and addresses is not None:
        table = index.with_addresses(table, addresses)
        for name in ("uri", "url"):
            if name in table.column_names:
                below = [relative_address(addresses.raw_root, address) for address in table[name].to_pylist()]
                table = table.set_column(table.column_names.index(name), name, pa.array(below, pa.string()))
        table = index.with_metadata(table, relative=True)
    if "key" in table.column_names and "rule" not in table.column_names and "label" in table.column_names:
        rows = len(table)
        table = table.append_column(index.INDEX.field("rule"), pa.array([FIRST_RULE.rule] * rows, pa.int16()))
        table = table.append_column(index.INDEX.field("pillow"), pa.nulls(rows, pa.string()))
    return table


def _without(quarantined: pa.Table, without: frozenset[str]) -> pa.Table:
    """A quarantine without some images; what says that another one looks like one of them does not name it."""
    kept = quarantined.filter(pa.array([key not in without for key in quarantined["key"].to_pylist()], pa.bool_()))
    details = [
        _ERASED_DETAIL if without.intersection((detail or "").split()) else detail
        for detail in kept["detail"].to_pylist()
    ]
    return kept.set_column(kept.column_names.index("detail"), "detail", pa.array(details, pa.string()))


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables one below the other; a kept column has the type that holds the values of all, or none where it lacks."""
    first = tables[0]
    if len(tables) == 1:
        return first
    if len({index.has_relative_addresses(table) for table in tables}) > 1:
        raise IgptError("indexes of an earlier version have no record of where the raw images are; build once, first")
    types: dict[str, pa.DataType] = {}
    for table in tables:
        for column in table.schema:
            types[column.name] = _wider(types.get(column.name, column.type), column.type)
    schema = pa.schema([pa.field(name, kind) for name, kind in types.items()], first.schema.metadata)
    return pa.concat_tables([_cast(table, schema) for table in tables])


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for column in schema:
        if column.name not in table.column_names:
            columns.append(pa.nulls(len(table), column.type))
        elif column.type == pa.string() != table[column.name].type:
            values = table[column.name].to_pylist()
            columns.append(pa.array([None if value is None else json.dumps(value) for value in values], pa.string()))
        else:
            columns.append(table[column.name].cast(column.type))
    return pa.table(columns, schema=schema)


def _write(
    assembly: Assembly,
    dataset: str,
    accepted: pa.Table,
    quarantined: pa.Table | None,
    tokens: np.ndarray,
    labels: np.ndarray,
) -> ShardEntry:
    name, crops, side = assembly.name, tokens.shape[1], tokens.shape[2]
    keys = [key if crops == 1 else f"{key}-{crop:03d}" for key in accepted["key"].to_pylist() for crop in range(crops)]
    tar = shards.encode(keys, tokens.reshape(-1, side, side), np.repeat(labels, crops))
    rejected: dict[str, int] = {}
    rejections = None
    if quarantined is not None:
        rejected = dict(sorted(Counter(quarantined["reason"].to_pylist()).items()))
        rejections = index.table_to_bytes(index.with_metadata(quarantined))
    entry: dict[str, Any] = {
        "name": name,
        "split": assembly.pieces[0].split,
        "samples": len(keys),
        "images": len(accepted),
        "bytes": len(tar),
        "sha256": sha256(tar),
        "rejected": rejected,
        "quarantine": None if rejections is None else name,
        "quarantine_sha256": None if rejections is None else sha256(rejections),
        "decoding": rules(accepted),
    }
    rows = index.table_to_bytes(index.with_metadata(accepted, entry=entry))
    written = ShardEntry.from_fields(entry, index_sha256=sha256(rows))
    objects.write_bytes(objects.join(dataset, written.path), tar)
    if rejections is not None and written.quarantine_path is not None:
        objects.write_bytes(objects.join(dataset, written.quarantine_path), rejections)
    objects.write_bytes(objects.join(dataset, written.index_path), rows)
    return written


def rules(table: pa.Table) -> list[dict[str, Any]]:
    """How many images of an index were decoded by which rule, as an entry has it."""
    first = asdict(FIRST_RULE)
    counts = Counter((row.get("rule", first["rule"]), row.get("pillow", first["pillow"])) for row in table.to_pylist())
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    return [{"rule": rule, "pillow": pillow, "images": count} for (rule, pillow), count in ordered]
