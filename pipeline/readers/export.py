"""Write a snapshot as pictures for programs that know nothing of palettes: tars of PNG or RGB arrays, or folders.

    {out}/train-000000.tar ...      png: KEY.png, KEY.cls, KEY.json; rgb: KEY.npy (uint8 [H, W, 3]), KEY.cls, KEY.json
    {out}/train/flower/KEY.png ...  folders
    {out}/manifest.json             what is there; written last

The same snapshot gives the same bytes.
"""

import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.dataset import record
from pipeline.dataset.snapshot import ShardEntry
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.progress import Progress, silent
from pipeline.readers import arrow
from pipeline.readers.class_folders import UNLABELLED, class_folders
from pipeline.readers.selection import Selection, select
from pipeline.store import objects

Format = Literal["png", "rgb", "folders"]
MANIFEST = "manifest.json"
_NOT_OF_A_PICTURE = ("version", "url", "offset", "etag", "bytes", "rule", "pillow", "shard", "rgb")
_PUT_AT_ONCE = 200  # files of a folder


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """A tar of an export, or a folder of it."""

    name: str
    split: str
    samples: int
    sha256: str | None = None
    """Of a tar."""
    class_name: str | None = None
    """Of a folder; None for that of images without a class."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written."""

    out: str
    format: str
    snapshot: int
    content_digest: str
    resolution: int
    classes: tuple[str, ...]
    files: tuple[ExportedFile, ...]

    @property
    def samples(self) -> int:
        """Number of pictures."""
        return sum(file.samples for file in self.files)


def export(
    dataset: str,
    out: str,
    *,
    split: str | None = None,
    snapshot: int | None = None,
    format: str = "png",
    progress: Progress = silent,
) -> Export:
    """Write a snapshot, or a split of it, below a folder or URL that is empty; holds one shard in memory.

    Raises IgptError for another format, a folder that is not empty or lies in the dataset, and a damaged shard.
    """
    if format not in get_args(Format):
        raise IgptError(f"format is {format!r}: it must be one of {', '.join(get_args(Format))}")
    selection = select(dataset, split=split, snapshot=snapshot, pixels="rgb")
    out = objects.absolute(out).rstrip("/")
    _check_empty(out, selection.snapshot.dataset)
    written = (
        _write_folders(selection, out, progress)
        if format == "folders"
        else _write_tars(selection, out, format, progress)
    )
    files = tuple(written)
    chosen = selection.snapshot
    done = Export(
        out=out,
        format=format,
        snapshot=chosen.number,
        content_digest=chosen.content_digest,
        resolution=chosen.resolution,
        classes=chosen.classes,
        files=files,
    )
    fields = {name: value for name, value in asdict(done).items() if name != "out"}
    objects.write_bytes(objects.join(out, MANIFEST), (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode())
    return done


def _check_empty(out: str, dataset: str) -> None:
    if out == dataset or out.startswith(f"{dataset}/"):
        raise IgptError(f"{out}: lies in the dataset, where `igpt dataset gc` removes it; give another folder")
    objects.check_reachable(out)
    first = next(objects.list_files(out), None)
    if first is None:
        return
    if first.url == out:
        raise IgptError(f"{out}: is a file; give a folder")
    if objects.exists(objects.join(out, MANIFEST)):
        raise IgptError(f"{out}: holds an export already; give another folder, or remove it first")
    raise IgptError(
        f"{out}: is not empty; give another folder, or remove it first (an export without {MANIFEST} was interrupted)"
    )


def _shards(selection: Selection, progress: Progress) -> Iterator[tuple[ShardEntry, pa.Table]]:
    addresses = record.of_addresses(selection.snapshot)
    done = 0
    for shard in selection.shards:
        progress("export", done, selection.samples, "images")
        yield shard, arrow.table_of(selection, shard, addresses)
        done += shard.samples
    progress("export", done, selection.samples, "images")


def _key(row: dict[str, Any], crops: bool) -> str:
    return f"{row['key']}-{row['crop']:03d}" if crops else row["key"]


def _samples(shard: ShardEntry, table: pa.Table) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Key, picture and columns of each sample of a shard."""
    rows = table.drop_columns([name for name in _NOT_OF_A_PICTURE if name in table.column_names]).to_pylist()
    for row, picture in zip(rows, arrow.pixels_of(table["rgb"]), strict=True):
        yield _key(row, shard.samples != shard.images), picture, row


def _write_tars(selection: Selection, out: str, format: str, progress: Progress) -> Iterator[ExportedFile]:
    encode: Callable[[np.ndarray], bytes] = _png if format == "png" else _npy
    extension = "png" if format == "png" else "npy"
    numbers: Counter[str] = Counter()
    for shard, table in _shards(selection, progress):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, picture, row in _samples(shard, table):
                _add(tar, f"{key}.{extension}", encode(picture))
                _add(tar, f"{key}.cls", str(row["label"]).encode())
                _add(tar, f"{key}.json", json.dumps(_as_json(row), sort_keys=True).encode())
        data = buffer.getvalue()
        name = f"{shard.split}-{numbers[shard.split]:06d}.tar"
        numbers[shard.split] += 1
        objects.write_bytes(objects.join(out, name), data)
        yield ExportedFile(name=name, split=shard.split, samples=shard.samples, sha256=sha256(data))


def _write_folders(selection: Selection, out: str, progress: Progress) -> Iterator[ExportedFile]:
    classes = selection.snapshot.classes
    folders = [*class_folders(classes), UNLABELLED]  # -1 is the last one
    counts: Counter[tuple[str, int]] = Counter()
    for shard, table in _shards(selection, progress):
        pictures: dict[str, bytes] = {}
        for key, picture, row in _samples(shard, table):
            counts[shard.split, row["label"]] += 1
            pictures[objects.join(out, shard.split, folders[row["label"]], f"{key}.png")] = _png(picture)
            if len(pictures) >= _PUT_AT_ONCE:
                objects.write_many(pictures)
                pictures.clear()
        objects.write_many(pictures)
    for (split, label), samples in sorted(counts.items()):
        yield ExportedFile(
            name=f"{split}/{folders[label]}", split=split, samples=samples, class_name=selection.class_name(label)
        )


def _png(picture_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def _npy(picture_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, picture_HW3)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of time 0 and owner 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no numbers that are not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
