"""Tars, plain or compressed: what is in them, and their members' bytes.

A plain tar is read at random. A compressed one is a stream, which is read from its beginning each time.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa

from pipeline.dataset import kept_columns
from pipeline.errors import IgptError, first_line
from pipeline.hashing import sha256
from pipeline.images import formats
from pipeline.source import left_out, names
from pipeline.source.class_names import class_name
from pipeline.source.members import (
    DamagedContainerError,
    Links,
    Members,
    ScanOptions,
    damaged,
    is_damage,
    member_etag,
    without_images,
)
from pipeline.store import bulk
from pipeline.store.block_reader import BlockReader
from pipeline.store.objects import StoredFile

_LONGEST_LABEL_BYTES = 1000
_LARGEST_JSON_BYTES = 1 << 20
_BATCH_BYTES = 16 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
# A compressed tar is read from its beginning for every shard that has an image of it.
_LARGEST_STREAM_BYTES = 32 * 1024**3
_COMPRESSIONS = {
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bzip2",
    ".tbz2": "bzip2",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".tar.zst": "zstd",
    ".tzst": "zstd",
}
EXTENSIONS = (".tar", *_COMPRESSIONS)
_SIGNATURES = {  # with the place where it stands
    ".tar.gz": (0, b"\x1f\x8b"),
    ".tar.bz2": (0, b"BZh"),
    ".tar.xz": (0, b"\xfd7zXZ"),
    ".tar.zst": (0, b"\x28\xb5\x2f\xfd"),
    ".zip": (0, b"PK\3\4"),
    ".parquet": (0, b"PAR1"),
    ".tar": (257, b"ustar"),
}


def compression_of(url: str) -> str | None:
    """How a tar is compressed, by its extension; None for a plain one."""
    lower = url.lower()
    return next((name for ending, name in _COMPRESSIONS.items() if lower.endswith(ending)), None)


class Sidecars:
    """What WebDataset has beside the images of an archive, by sample: {sample}.cls with the class, {sample}.json.

    The JSON has the columns that settings name.
    """

    def __init__(self, options: ScanOptions) -> None:
        self._options = options
        self._others: Counter[str] = Counter()  # members that are neither images nor beside one, by extension
        self._archive: str | None = None  # the first of these that is an archive
        self._labels: dict[str, str | None] = {}
        self._splits: dict[str, str | None] = {}
        self._kept: dict[str, str] = {}

    def leave_out(self, name: str) -> None:
        """Count a member that is neither an image nor beside one."""
        self._others[left_out.kind_of(name)] += 1
        if self._archive is None and names.is_archive(name):
            self._archive = name

    def wants(self, name: str, size: int) -> bool:
        """Whether a member is one of these."""
        options, lower = self._options, name.lower()
        has_columns = bool(options.keep_columns or options.label_column or options.split_column)
        is_json = has_columns and lower.endswith(".json") and size <= _LARGEST_JSON_BYTES
        return is_json or (lower.endswith(".cls") and size <= _LONGEST_LABEL_BYTES)

    def add(self, name: str, data: bytes) -> None:
        """Take in a member. Raises IgptError for a label or split that is a list."""
        if name.lower().endswith(".cls"):
            text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
            self._labels.setdefault(name[:-4], class_name(text))
            return
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            fields = None
        known, options = fields if isinstance(fields, dict) else {}, self._options
        sample = name[:-5]
        self._kept[sample] = kept_columns.to_json(known, options.keep_columns)
        for column, values in ((options.label_column, self._labels), (options.split_column, self._splits)):
            if column is not None and column in known:
                if isinstance(known[column], list | dict):
                    raise IgptError(f"{name}: {column} is a list, and an image has one value; choose another column")
                values[sample] = class_name(known[column])

    def table(self, members: Members) -> pa.Table:
        """The scan of the archive: the class of an image is what is beside it, else the name of its folder."""
        if not members.names and self._archive is not None:
            why = f"it holds archives, such as {self._archive}, and no image; unpack it and give the folder"
            return left_out.attach(without_images(why), self._others)
        labels, splits, kept = [], [], []
        for name in members.names:
            sample = self._sample(self._labels, name)
            labels.append(names.folder_of(name) if sample is None else self._labels[sample])
            splits.append(self._splits.get(self._sample(self._splits, name) or ""))
            kept.append(self._kept.get(self._sample(self._kept, name) or "", self._options.nothing_kept))
        members.names = _unique(members.names)
        table = members.table(labels, splits=splits, kept=kept, has_labels=bool(self._labels))
        return left_out.attach(table, self._others)

    @staticmethod
    def _sample(known: Mapping[str, object], name: str) -> str | None:
        """The sample that an image belongs to, if that is known."""
        # WebDataset ends a key at the first dot; some tools write keys with dots.
        samples = (name.rpartition(".")[0], names.sample_of(name)) if known else ()
        return next((sample for sample in samples if sample in known), None)


def _unique(member_names: Sequence[str]) -> list[str]:
    """Make names unique by appending #2, #3, ...: an archive may hold several members of one name."""
    counts: Counter[str] = Counter()
    unique_names = []
    for name in member_names:
        counts[name] += 1
        unique_names.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return unique_names


def scan(file: StoredFile, options: ScanOptions) -> pa.Table:
    """List the images of a tar; schema MEMBERS. One that is cut off or damaged gives one row with a problem."""
    try:
        return _Scan(file, options).table()
    except DamagedContainerError as error:
        return damaged(str(error))
    except Exception as error:
        if not is_damage(error):
            raise
        is_plain = compression_of(file.url) is None
        otherwise = "give an uncompressed, complete tar file" if is_plain else "give a complete archive"
        return damaged(f"not a readable tar ({first_line(error)}); {advice(file, otherwise)}")


def advice(file: StoredFile, otherwise: str) -> str:
    """What to do about a container that cannot be read: rename it, if by its first bytes it is of another kind."""
    beginning = bulk.read_range(file.url, 0, min(512, file.size)) if file.size else b""
    kinds = (kind for kind, (place, signature) in _SIGNATURES.items() if beginning.startswith(signature, place))
    kind = next(kinds, None)
    if kind is None or _kind_of_name(file.url) == _kind_of_name(kind):
        return otherwise
    return f"by its first bytes it is a {kind}: name it so, or {otherwise}"


def _kind_of_name(name: str) -> str:
    return compression_of(name) or name.lower().rpartition(".")[2]


class _Scan:
    def __init__(self, file: StoredFile, options: ScanOptions) -> None:
        self._file = file
        self._members, self._sidecars = Members(), Sidecars(options)
        self._links = Links()

    def table(self) -> pa.Table:
        with _open(self._file.url, self._file.size) as stream:
            for member in _headers(stream):
                self._add(member, stream)
        self._links.resolve(self._members, self._read_targets(self._links.targets() - set(self._members.names)))
        return self._sidecars.table(self._members)

    def _add(self, member: tarfile.TarInfo | str, stream: IO[bytes]) -> None:
        if isinstance(member, str):
            self._members.add("", 0, 0, "", problem=member)
            return
        name = names.of_member(member.name)
        if names.is_hidden(name):
            return
        is_image = formats.has_image_extension(name)
        if member.islnk() and is_image:
            self._links.add(name, names.of_member(member.linkname))
        elif member.issym() and is_image:
            self._links.add(name, names.of_link(name, member.linkname))
        elif is_image and member.issparse():
            why = "stored with holes (tar -S), which cannot be read in parts; write the tar without -S"
            self._members.add(name, member.offset_data, member.size, "", problem=why)
        elif is_image and member.isreg():
            data = _bytes_of(member, stream)
            self._members.add(name, member.offset_data, member.size, member_etag(sha256(data)))
        elif member.isreg() and self._sidecars.wants(name, member.size):
            self._sidecars.add(name, _bytes_of(member, stream))
        elif is_image and member.type not in tarfile.SUPPORTED_TYPES:
            why = f"a member of type {member.type.decode('latin-1')!r}; write the tar anew"
            self._members.add(name, member.offset_data, member.size, "", problem=why)
        elif not member.isdir():
            self._sidecars.leave_out(name)

    def _read_targets(self, wanted: set[str]) -> dict[str, tuple[int, int, str]]:
        """Offset, length and etag of members that are no images by their names."""
        read: dict[str, tuple[int, int, str]] = {}
        if not wanted:
            return read
        with _open(self._file.url, self._file.size) as stream:
            for member in _headers(stream):
                if not isinstance(member, str) and member.isreg() and not member.issparse():
                    name = names.of_member(member.name)
                    if name in wanted:
                        data = _bytes_of(member, stream)
                        read[name] = (member.offset_data, member.size, member_etag(sha256(data)))
        return read


def _bytes_of(member: tarfile.TarInfo, stream: IO[bytes]) -> bytes:
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) != member.size:
        raise tarfile.ReadError(f"cut off in {names.of_member(member.name)}")
    return data


def _headers(stream: IO[bytes]) -> Iterator[tarfile.TarInfo | str]:
    """The members of a tar and of the tars that follow it; a text for what follows and is no tar.

    Raises TarError when an archive is cut off or damaged.
    """
    while True:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or tarfile would keep every header
                yield member
            # tarfile treats a damaged or missing header as the end of the archive; a complete tar ends with zeros.
            end = archive.offset
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"cut off or damaged at byte {end}")
        following = _next_block(stream)
        if following is None:
            return
        stream.seek(following)
        try:
            tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError:
            yield f"what follows the end of the tar, from byte {following} on, is no tar; cut it off or write it anew"
            return
        stream.seek(following)


def _next_block(stream: IO[bytes]) -> int | None:
    """The offset of the next block, from the position of the stream, that is not all zeros; None without one."""
    while chunk := stream.read(_CHUNK_BYTES):
        rest = chunk.lstrip(b"\0")
        if rest:
            position = stream.tell() - len(rest)
            return position - position % tarfile.BLOCKSIZE
    return None


def _open(url: str, size: int) -> IO[bytes]:
    """The bytes of a tar as a file that can be read and sought forward."""
    raw: Any = BlockReader(url, size)
    match compression_of(url):
        case None:
            return raw
        case "gzip":
            return _Stream(gzip.GzipFile(fileobj=raw))  # type: ignore[return-value]
        case "bzip2":
            return _Stream(bz2.BZ2File(raw))  # type: ignore[return-value]
        case "xz":
            return _Stream(lzma.LZMAFile(raw))  # type: ignore[return-value]
        case _:
            return _Stream(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))  # type: ignore[return-value]


class _Stream(io.RawIOBase):
    """A decompressed stream, which can be sought forward, and back by what it keeps: tarfile goes back a block."""

    _KEPT_BYTES = 64 * 1024

    def __init__(self, source: Any) -> None:
        self._source, self._position, self._end = source, 0, 0
        self._kept = b""  # the bytes before _end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET and offset >= self._end - len(self._kept)
        while self._end < offset and self._load(min(offset - self._end, _CHUNK_BYTES)):
            pass
        self._position = offset
        return offset

    def _load(self, size: int) -> bytes:
        data = self._source.read(size)
        self._end += len(data)
        if self._end > _LARGEST_STREAM_BYTES:
            raise DamagedContainerError(
                f"more than {_LARGEST_STREAM_BYTES // 1024**3} GiB when decompressed, and a compressed tar is read "
                "from its beginning each time; give it uncompressed"
            )
        self._kept = (self._kept + data)[-self._KEPT_BYTES :]
        return data

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes; fewer only at the end."""
        assert size is not None and size >= 0
        behind = self._end - self._position
        parts = []
        if behind > 0:
            parts.append(self._kept[len(self._kept) - behind :][:size])
        if behind >= 0:
            missing = size - sum(map(len, parts))
            while missing > 0 and (data := self._load(min(missing, _CHUNK_BYTES))):
                parts.append(data)
                missing -= len(data)
        read = b"".join(parts)
        self._position += len(read)
        return read


def read(url: str, size: int, offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[list[bytes]]:
    """The members of a tar at ascending offsets, in batches. Raises EOFError when it ends before them."""
    if compression_of(url) is None:
        yield bulk.read_ranges(url, offsets, lengths)
        return
    batch: list[bytes] = []
    held = 0
    try:
        with _open(url, size) as stream:
            kept: tuple[int, bytes] = (-1, b"")  # links have the offset of another member
            for offset, length in zip(offsets, lengths, strict=True):
                if offset != kept[0]:
                    stream.seek(offset)
                    kept = (offset, stream.read(length))
                batch.append(kept[1])
                held += length
                if held >= _BATCH_BYTES:
                    yield batch
                    batch, held = [], 0
    except Exception as error:
        if not is_damage(error):
            raise
        raise EOFError(f"{url} is another file than was scanned") from None
    if batch:
        yield batch
