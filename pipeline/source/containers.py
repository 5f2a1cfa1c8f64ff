"""Files that hold many images: tars (plain or WebDataset) and Parquet with image bytes. Scanned once, read in parts.

A member's etag is a digest of its bytes, so that images stay unchanged when their container is rewritten with some
images more or less.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import kept_columns
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.images import formats
from pipeline.source import left_out
from pipeline.store import bulk, objects
from pipeline.store.block_reader import BlockReader
from pipeline.store.objects import StoredFile

EXTENSIONS = (".tar", ".parquet")
# Folders of thumbnails and of deleted files, by Synology, QNAP and Windows.
_LEFTOVERS = {"@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information"}
# Bump when the scan of an unchanged file would differ: kept scans of other versions are not used.
SCAN_VERSION = 2

MEMBERS = pa.schema(
    [
        ("name", pa.string()),  # of the member in the container; unique there
        ("offset", pa.int64()),  # tar: offset of its bytes; Parquet: number of its row
        ("length", pa.int64()),  # bytes
        ("etag", pa.string()),  # digest of its bytes
        ("label", pa.string()),  # from the container, or null
        ("part", pa.int32()),  # Parquet: row group, which is read as a whole; tar: 0
    ]
)


_KEPT = pa.field("kept", pa.string())  # JSON of the kept columns
_MAX_JSON_BYTES = 1 << 20


def members_schema(keep_columns: Sequence[str]) -> pa.Schema:
    """The schema of a scan."""
    return MEMBERS.append(_KEPT) if keep_columns else MEMBERS


def is_container(name: str) -> bool:
    """Whether a file holds many images, by its extension."""
    return name.lower().endswith(EXTENSIONS)


def member_etag(checksum: str) -> str:
    """The etag of a member: the first 128 bits of the SHA-256 of its bytes."""
    return checksum[:32]


def scan(file: StoredFile, keep_columns: Sequence[str] = ()) -> pa.Table:
    """List the images of a container, in the order of the file; schema MEMBERS, and `kept` if columns are kept.

    Reads the whole file. Raises IgptError when it is damaged.
    """
    if file.url.lower().endswith(".parquet"):
        return _scan_parquet(file, keep_columns)
    return _scan_tar(file, keep_columns)


def _scan_tar(file: StoredFile, keep_columns: Sequence[str]) -> pa.Table:
    rows: list[tuple[str, int, int, str]] = []
    others: Counter[str] = Counter()
    labels: dict[str, str] = {}  # WebDataset: the text of {sample}.cls, by sample
    kept: dict[str, str] = {}  # WebDataset: the kept columns of {sample}.json, by sample
    stream = BlockReader(file.url, file.size)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or tarfile would keep every header
                name = member.name.removeprefix("./").lstrip("/")  # `tar -C folder .` adds "./"
                if not member.isreg() or member.issparse() or is_hidden(name):
                    continue
                stream.seek(member.offset_data)
                if formats.has_image_extension(name):
                    rows.append((name, member.offset_data, member.size, member_etag(sha256(stream.read(member.size)))))
                elif name.lower().endswith(".cls") and member.size <= 1000:
                    labels[name[:-4]] = stream.read(member.size).decode(errors="replace").strip()
                elif keep_columns and name.lower().endswith(".json") and member.size <= _MAX_JSON_BYTES:
                    kept[name[:-5]] = _kept_of_json(stream.read(member.size), keep_columns)
                else:
                    others[left_out.kind_of(name)] += 1
            # tarfile treats a damaged or missing header as the end of the archive; a complete tar ends with zeros.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"cut off or damaged at byte {archive.offset}")
    except tarfile.TarError as error:
        raise IgptError(f"{file.url}: not a readable tar ({error}); give an uncompressed, complete tar file") from None
    members = _members(
        names=_unique([name for name, *_ in rows]),
        offsets=[offset for _, offset, _, _ in rows],
        lengths=[length for _, _, length, _ in rows],
        etags=[etag for *_, etag in rows],
        labels=[labels.get(sample_of(name), folder_of(name)) for name, *_ in rows],
        parts=[0] * len(rows),
        kept=[kept.get(sample_of(name), nothing_kept(keep_columns)) for name, *_ in rows] if keep_columns else None,
    )
    return left_out.attach(members, others)


def _kept_of_json(data: bytes, keep_columns: Sequence[str]) -> str:
    try:
        fields = json.loads(data)
    except ValueError:
        fields = None
    return kept_columns.to_json(fields if isinstance(fields, dict) else {}, keep_columns)


def nothing_kept(keep_columns: Sequence[str]) -> str | None:
    """The kept columns of an image that has none of them."""
    return kept_columns.to_json({}, keep_columns) if keep_columns else None


def _unique(names: Sequence[str]) -> list[str]:
    """Make names unique by appending #2, #3, ...: a tar may hold several members of one name."""
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return unique


def sample_of(name: str) -> str:
    """The WebDataset sample of a member: its path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.split('.', 1)[0]}"


def folder_of(name: str) -> str | None:
    """The name of a file's folder, or None at the top level."""
    return PurePosixPath(name).parent.name or None


def is_hidden(name: str) -> bool:
    """Whether a path is hidden or a leftover of a file manager or of network storage."""
    return any(part.startswith((".", "__MACOSX")) or part in _LEFTOVERS for part in name.split("/"))


def _scan_parquet(file: StoredFile, keep_columns: Sequence[str]) -> pa.Table:
    parquet = _open_parquet(file.url, file.size)
    class_names = _class_names(parquet.schema_arrow)
    tables = []
    first = 0
    for group in range(parquet.num_row_groups):
        images = _image_bytes(parquet, group, file.url)
        labels = _labels(parquet, group, class_names)
        tables.append(
            _members(
                names=[f"{first + row:08d}" for row in range(len(images))],
                offsets=range(first, first + len(images)),
                lengths=[len(image) for image in images],
                etags=[member_etag(sha256(image)) for image in images],
                labels=labels,
                parts=[group] * len(images),
                kept=_kept_of_group(parquet, group, keep_columns) if keep_columns else None,
            )
        )
        first += len(images)
    return pa.concat_tables(tables) if tables else members_schema(keep_columns).empty_table()


def _kept_of_group(parquet: pq.ParquetFile, group: int, keep_columns: Sequence[str]) -> list[str]:
    there = [name for name in keep_columns if name in parquet.schema_arrow.names]
    if not there:
        return [kept_columns.to_json({}, keep_columns)] * parquet.metadata.row_group(group).num_rows
    rows = parquet.read_row_group(group, columns=there).to_pylist()
    return [kept_columns.to_json(row, keep_columns) for row in rows]


def _open_parquet(url: str, size: int) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(BlockReader(url, size))
    except pa.ArrowInvalid as error:
        raise IgptError(f"{url}: not a readable Parquet file ({error}); write it again") from None


def _image_column(schema: pa.Schema, url: str) -> str:
    """The column with the image bytes: `image`, a struct with `bytes` as in Hugging Face datasets, or binary."""
    if "image" in schema.names:
        column_type = schema.field("image").type
        if pa.types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0:
            return "image.bytes"
        if pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type):
            return "image"
    raise IgptError(
        f"{url}: no column image: struct<bytes, path> or image: binary among {', '.join(schema.names)}; "
        "write the images in the layout of Hugging Face datasets"
    )


def _image_bytes(parquet: pq.ParquetFile, group: int, url: str) -> list[bytes]:
    column = _image_column(parquet.schema_arrow, url)
    try:
        table = parquet.read_row_group(group, columns=[column])
    except (pa.ArrowInvalid, OSError) as error:
        raise IgptError(f"{url}: row group {group} cannot be read ({error}); write the file again") from None
    values = table["image"].combine_chunks()
    if column != "image":
        values = values.field("bytes")
    return [value.as_py() or b"" for value in values]


def _labels(parquet: pq.ParquetFile, group: int, class_names: Sequence[str] | None) -> list[str | None]:
    rows = parquet.metadata.row_group(group).num_rows
    if "label" not in parquet.schema_arrow.names:
        return [None] * rows
    values = parquet.read_row_group(group, columns=["label"])["label"].to_pylist()
    return [_class_name(value, class_names or ()) for value in values]


def _class_name(label: Any, class_names: Sequence[str]) -> str | None:
    if label is None or label == -1:
        return None
    return class_names[label] if isinstance(label, int) and 0 <= label < len(class_names) else str(label)


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The names of the classes, if the file has the metadata of Hugging Face datasets."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        label = json.loads(text)["info"]["features"]["label"] if text else None
        return [str(name) for name in label["names"]] if label else None
    except (ValueError, KeyError, TypeError):
        return None


def _members(
    *,
    names: Sequence[str],
    offsets: Sequence[int],
    lengths: Sequence[int],
    etags: Sequence[str],
    labels: Sequence[str | None],
    parts: Sequence[int],
    kept: Sequence[str | None] | None,
) -> pa.Table:
    table = pa.table([names, offsets, lengths, etags, labels, parts], schema=MEMBERS)
    return table if kept is None else table.append_column(_KEPT, pa.array(kept, pa.string()))


def read_members(url: str, offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[list[bytes]]:
    """Read members of a container, given by ascending offsets; yields them in that order, in batches."""
    if not url.lower().endswith(".parquet"):
        yield bulk.read_ranges(url, offsets, lengths)
        return
    size = objects.size(url)
    if size is None:
        raise FileNotFoundError(f"{url} is gone")
    parquet = _open_parquet(url, size)
    rows = np.asarray(offsets, np.int64)
    ends = np.cumsum([parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)])
    groups = np.searchsorted(ends, rows, side="right")
    for group in np.unique(groups):
        if group >= len(ends):
            raise FileNotFoundError(f"{url} has no row {rows[groups == group][0]}")
        images = _image_bytes(parquet, int(group), url)
        first = int(ends[group]) - len(images)
        yield [images[int(row) - first] for row in rows[groups == group]]


def to_bytes(members: pa.Table) -> bytes:
    """Write a scan as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(members, buffer, compression="zstd")
    return buffer.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """Read a scan that to_bytes wrote. Raises ValueError when the file is something else."""
    table = pq.read_table(io.BytesIO(data))
    if table.schema not in (MEMBERS, members_schema(["any"])):
        raise ValueError("not a scan of a container")
    return table
