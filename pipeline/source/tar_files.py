"""Tars, plain or compressed: what is in them, and their members' bytes.

A plain tar is read at random. A compressed one is a stream, which is read from its beginning each time.
"""

import tarfile
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa

from pipeline.errors import first_line
from pipeline.hashing import sha256
from pipeline.images import formats
from pipeline.source import names
from pipeline.source.members import (
    DamagedContainerError,
    Links,
    Members,
    ScanOptions,
    damaged,
    is_damage,
    member_etag,
)
from pipeline.source.sidecars import Sidecars
from pipeline.source.tar_stream import compression_of, headers, open_stream
from pipeline.store import bulk
from pipeline.store.objects import StoredFile

_BATCH_BYTES = 16 * 1024 * 1024
_SIGNATURES = {  # with the place where it stands
    ".tar.gz": (0, b"\x1f\x8b"),
    ".tar.bz2": (0, b"BZh"),
    ".tar.xz": (0, b"\xfd7zXZ"),
    ".tar.zst": (0, b"\x28\xb5\x2f\xfd"),
    ".zip": (0, b"PK\3\4"),
    ".parquet": (0, b"PAR1"),
    ".tar": (257, b"ustar"),
}


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
        with open_stream(self._file.url, self._file.size) as stream:
            for member in headers(stream):
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
        with open_stream(self._file.url, self._file.size) as stream:
            for member in headers(stream):
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


def read(url: str, size: int, offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[list[bytes]]:
    """The members of a tar at ascending offsets, in batches. Raises EOFError when it ends before them."""
    if compression_of(url) is None:
        yield bulk.read_ranges(url, offsets, lengths)
        return
    batch: list[bytes] = []
    held = 0
    try:
        with open_stream(url, size) as stream:
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
