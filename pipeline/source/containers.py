"""Files that hold many images: tars (plain or WebDataset) and Parquet with image bytes. Scanned once, read in parts.

A member is known by the digest of its bytes, so that a container which was written anew, with some images more or
less, leaves the images that it kept what they were.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.images import decode
from pipeline.store import bulk, objects
from pipeline.store.objects import StoredFile

EXTENSIONS = (".tar", ".parquet")
# Raised when a scan comes to something else from the same file: what was scanned before is then scanned again.
SCANNER = 1

MEMBERS = pa.schema(
    [
        ("name", pa.string()),  # of the member in the container; unique there
        ("offset", pa.int64()),  # in a tar the place of its bytes, in Parquet the number of its row
        ("length", pa.int64()),  # bytes
        ("etag", pa.string()),  # digest of its bytes
        ("label", pa.string()),  # what the container says, or null
        ("part", pa.int32()),  # row group of a Parquet file, read as a whole; 0 in a tar
    ]
)


def is_container(name: str) -> bool:
    """Tell by its extension whether a file holds many images."""
    return name.lower().endswith(EXTENSIONS)


def member_etag(sha256: str) -> str:
    """The etag of a member: 128 bits of the SHA-256 of its bytes."""
    return sha256[:32]


def scan(file: StoredFile) -> pa.Table:
    """List the images of a container; MEMBERS, in the order in which they stand there.

    Reads the whole file. Raises IgptError when it cannot be read through.
    """
    if file.url.lower().endswith(".parquet"):
        return _scan_parquet(file)
    return _scan_tar(file)


def _scan_tar(file: StoredFile) -> pa.Table:
    rows: list[tuple[str, int, int, str]] = []
    labels: dict[str, str] = {}  # WebDataset: the text of {sample}.cls, by sample
    stream = bulk.BlockReader(file.url, file.size)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                name = member.name.removeprefix("./").lstrip("/")  # `tar -C folder .` puts "./" first
                if not member.isreg() or member.issparse() or is_hidden(name):
                    continue
                stream.seek(member.offset_data)
                if decode.has_image_extension(name):
                    rows.append((name, member.offset_data, member.size, member_etag(sha256(stream.read(member.size)))))
                elif name.lower().endswith(".cls") and member.size <= 1000:
                    labels[name[:-4]] = stream.read(member.size).decode(errors="replace").strip()
            # tarfile takes a damaged header, or none at all, for the end; a complete tar ends in blocks of zeros.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"cut off or damaged at byte {archive.offset}")
    except tarfile.TarError as error:
        raise IgptError(f"{file.url}: not a readable tar ({error}); give an uncompressed, complete tar file") from None
    return _members(
        names=_unique([name for name, *_ in rows]),
        offsets=[offset for _, offset, _, _ in rows],
        lengths=[length for _, _, length, _ in rows],
        etags=[etag for *_, etag in rows],
        labels=[labels.get(sample_of(name), folder_of(name)) for name, *_ in rows],
        parts=[0] * len(rows),
    )


def _unique(names: Sequence[str]) -> list[str]:
    """The names, a second image of a name marked as such: a tar may hold two."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def sample_of(name: str) -> str:
    """The WebDataset sample that a member belongs to: its path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.split('.', 1)[0]}"


def folder_of(name: str) -> str | None:
    """The name of the folder that a file lies in, or None at the top."""
    return PurePosixPath(name).parent.name or None


def is_hidden(name: str) -> bool:
    """Tell whether a path is one of those that file managers leave behind."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _scan_parquet(file: StoredFile) -> pa.Table:
    opened = _open_parquet(file.url, file.size)
    class_names = _class_names(opened.schema_arrow)
    tables = []
    first = 0
    for group in range(opened.num_row_groups):
        data = _image_bytes(opened, group, file.url)
        labels = _labels(opened, group, class_names)
        tables.append(
            _members(
                names=[f"{first + row:08d}" for row in range(len(data))],
                offsets=range(first, first + len(data)),
                lengths=[len(each) for each in data],
                etags=[member_etag(sha256(each)) for each in data],
                labels=labels,
                parts=[group] * len(data),
            )
        )
        first += len(data)
    return pa.concat_tables(tables) if tables else MEMBERS.empty_table()


def _open_parquet(url: str, size: int) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(bulk.BlockReader(url, size))
    except pa.ArrowInvalid as error:
        raise IgptError(f"{url}: not a readable Parquet file ({error}); write it again") from None


def _image_column(schema: pa.Schema, url: str) -> str:
    """The column with the images' bytes: `image`, a struct with `bytes` as Hugging Face writes it, or plain binary."""
    if "image" in schema.names:
        kind = schema.field("image").type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return "image.bytes"
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return "image"
    raise IgptError(
        f"{url}: no column image: struct<bytes, path> or image: binary among {', '.join(schema.names)}; "
        "write the images in the layout of Hugging Face datasets"
    )


def _image_bytes(opened: pq.ParquetFile, group: int, url: str) -> list[bytes]:
    column = _image_column(opened.schema_arrow, url)
    try:
        table = opened.read_row_group(group, columns=[column])
    except (pa.ArrowInvalid, OSError) as error:
        raise IgptError(f"{url}: row group {group} cannot be read ({error}); write the file again") from None
    values = table["image"].combine_chunks()
    if column != "image":
        values = values.field("bytes")
    return [value.as_py() or b"" for value in values]


def _labels(opened: pq.ParquetFile, group: int, class_names: Sequence[str] | None) -> list[str | None]:
    rows = opened.metadata.row_group(group).num_rows
    if "label" not in opened.schema_arrow.names:
        return [None] * rows
    values = opened.read_row_group(group, columns=["label"])["label"].to_pylist()
    named = []
    for value in values:
        known = class_names is not None and isinstance(value, int) and 0 <= value < len(class_names)
        unlabelled = value is None or value == -1
        named.append(None if unlabelled else class_names[value] if known and class_names else str(value))
    return named


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The names of the classes, where the file carries the features that Hugging Face datasets write."""
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
) -> pa.Table:
    return pa.table([names, offsets, lengths, etags, labels, parts], schema=MEMBERS)


def read_members(url: str, offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[list[bytes]]:
    """Read members of a container, in ascending order of their offsets; yields them in that order, some at a time."""
    if not url.lower().endswith(".parquet"):
        yield bulk.read_ranges(url, offsets, lengths)
        return
    size = objects.size(url)
    if size is None:
        raise FileNotFoundError(f"{url} is gone")
    opened = _open_parquet(url, size)
    rows = np.asarray(offsets, np.int64)
    ends = np.cumsum([opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)])
    groups = np.searchsorted(ends, rows, side="right")
    for group in np.unique(groups):
        if group >= len(ends):
            raise FileNotFoundError(f"{url} has no row {rows[groups == group][0]}")
        data = _image_bytes(opened, int(group), url)
        first = int(ends[group]) - len(data)
        yield [data[int(row) - first] for row in rows[groups == group]]


def to_bytes(members: pa.Table) -> bytes:
    """A scan as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(members, buffer, compression="zstd")
    return buffer.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """Read what to_bytes wrote. Raises ValueError when it is something else."""
    table = pq.read_table(io.BytesIO(data))
    if table.schema != MEMBERS:
        raise ValueError("not a scan of a container")
    return table
