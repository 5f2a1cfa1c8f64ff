"""Zip archives: what is in them, and their members' bytes, read at random. Stored and deflated members are read.

A member is found by the offset of its header, which says how it is compressed and where its bytes begin.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa

from pipeline.errors import first_line
from pipeline.hashing import sha256
from pipeline.images import formats
from pipeline.source import names
from pipeline.source.members import Links, Members, ScanOptions, damaged, is_damage, member_etag
from pipeline.source.sidecars import Sidecars
from pipeline.source.tar_files import advice
from pipeline.store import bulk
from pipeline.store.block_reader import BlockReader
from pipeline.store.objects import StoredFile

EXTENSIONS = (".zip",)
_HEADER = struct.Struct("<4s5H3I2H")
_SIGNATURE = b"PK\x03\x04"
# What a header takes with its name and extra fields, as a rule; what is longer is read once more.
_HEADER_BYTES = 1024
_ENCRYPTED, _UTF8 = 0x1, 0x800
_STORED, _DEFLATED = 0, 8
_UNICODE_PATH = 0x7075  # an extra field
_FROM_UNIX, _FROM_WINDOWS = 3, (0, 10)


def scan(file: StoredFile, options: ScanOptions) -> pa.Table:
    """List the images of a zip archive; schema MEMBERS. One that is cut off or damaged gives one row with a problem."""
    members, sidecars, links = Members(), Sidecars(options), Links()
    try:
        with zipfile.ZipFile(BlockReader(file.url, file.size)) as archive:
            for member in sorted(archive.infolist(), key=lambda it: it.header_offset):
                _add(member, archive, members, sidecars, links)
            links.resolve(members, _read_targets(archive, links.targets() - set(members.names)))
    except Exception as error:
        if not is_damage(error):
            raise
        return damaged(f"not a readable zip archive ({first_line(error)}); {advice(file, 'give a complete one')}")
    return sidecars.table(members)


def _add(member: zipfile.ZipInfo, archive: zipfile.ZipFile, members: Members, sidecars: Sidecars, links: Links) -> None:
    name = names.of_member(_path(member))
    is_image = formats.has_image_extension(name)
    is_sidecar = sidecars.wants(name, member.file_size)
    if member.is_dir() or names.is_hidden(name):
        return
    if not (is_image or is_sidecar):
        sidecars.leave_out(name)
        return
    problem = None
    if member.flag_bits & _ENCRYPTED:
        problem = "encrypted; write the archive without a password"
    elif member.compress_type not in (_STORED, _DEFLATED):
        problem = f"compressed by method {member.compress_type}; write the archive with deflate"
    try:
        data = b"" if problem else _bytes_of(member, archive)
    except Exception as error:
        if not is_damage(error):
            raise
        data, problem = b"", f"damaged in its archive ({first_line(error)}); write the archive anew"
    if is_image and problem is None and _is_link(member):
        links.add(name, names.of_link(name, data.decode("utf-8", "surrogateescape")))
    elif is_sidecar and problem is None:
        sidecars.add(name, data)
    elif is_image:
        etag = "" if problem else member_etag(sha256(data))
        # The missing beginning of a split archive makes offsets negative.
        members.add(name, max(0, member.header_offset), member.file_size, etag, problem=problem)


def _is_link(member: zipfile.ZipInfo) -> bool:
    return member.create_system == _FROM_UNIX and stat.S_ISLNK(member.external_attr >> 16)


def _read_targets(archive: zipfile.ZipFile, wanted: set[str]) -> dict[str, tuple[int, int, str]]:
    """Offset, length and etag of members that are no images by their names."""
    read: dict[str, tuple[int, int, str]] = {}
    for member in archive.infolist() if wanted else ():
        name = names.of_member(_path(member))
        is_read = member.compress_type in (_STORED, _DEFLATED) and not member.flag_bits & _ENCRYPTED
        if name in wanted and is_read and not _is_link(member):
            read[name] = (member.header_offset, member.file_size, member_etag(sha256(_bytes_of(member, archive))))
    return read


def _bytes_of(member: zipfile.ZipInfo, archive: zipfile.ZipFile) -> bytes:
    """The bytes of a member, which are of the size and the checksum that the archive says."""
    with archive.open(member) as file:
        data = file.read(member.file_size + 1)  # not all that a bomb holds
    if len(data) != member.file_size:
        raise zipfile.BadZipFile(f"{len(data)} of {member.file_size} bytes")
    return data


def _path(member: zipfile.ZipInfo) -> str:
    path = member.orig_filename
    if not member.flag_bits & _UTF8:
        # By the format these are in code page 437, but other systems than DOS write their own bytes.
        raw = path.encode("cp437")
        with suppress(UnicodeDecodeError):
            path = (_unicode_path(member.extra, raw) or raw).decode("utf-8")
    return path.replace("\\", "/") if member.create_system in _FROM_WINDOWS else path


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
    """The name in UTF-8 that Info-ZIP and WinRAR write beside one in the code page of a machine."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and field[:1] == b"\1" and field[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return field[5:]
    return None


def read(url: str, size: int, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """The members whose headers are at ascending offsets. One that is not there is empty: another file was scanned."""
    # Deflate makes what it cannot compress longer by five bytes a block, of 16 KiB or more.
    bounds = [
        min(size - offset, _HEADER_BYTES + length + length // 2048 + 64)
        for offset, length in zip(offsets, lengths, strict=True)
    ]
    if any(bound <= 0 for bound in bounds):
        raise EOFError(f"{url} is shorter than when it was scanned")
    parts = bulk.read_ranges(url, offsets, bounds)
    return [
        _inflate(url, size, offset, length, part) for offset, length, part in zip(offsets, lengths, parts, strict=True)
    ]


def _inflate(url: str, size: int, offset: int, length: int, part: bytes) -> bytes:
    if len(part) < _HEADER.size or not part.startswith(_SIGNATURE):
        return b""
    fields = _HEADER.unpack_from(part)
    method, name_bytes, extra_bytes = fields[3], fields[9], fields[10]
    begin = _HEADER.size + name_bytes + extra_bytes
    if begin > _HEADER_BYTES:
        stop = min(size, offset + begin + length + length // 2048 + 64)
        part = bulk.read_range(url, offset, stop)
    if method == _STORED:
        return part[begin : begin + length]
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(part[begin:], length) if length else b""
    except zlib.error:
        return b""
