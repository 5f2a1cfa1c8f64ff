"""Files without their metadata, for those whose metadata Pillow stumbles over though their pixels are whole. Pure."""

import re
import struct
import zlib
from collections.abc import Iterator

# What decides pixels and orientation.
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}
_JFIF, _EXIF, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xEE, 0xFE
_START_OF_SCAN = 0xDA
# Texts, resolution, profiles, XMP, and directories of EXIF and GPS.
_TIFF_METADATA = {
    *range(269, 273),
    282,
    283,
    285,
    296,
    305,
    306,
    315,
    316,
    700,
    33432,
    33723,
    34377,
    34665,
    34675,
    34853,
}
_NO_TYPE = b"\xff\xff"
# The header of EXIF and the number of its fields.
_EXIF_FIELDS = re.compile(rb"(II\*\0\x08\0\0\0|MM\0\*\0\0\0\x08)..", re.DOTALL)


def without_metadata(data: bytes) -> bytes | None:
    """A PNG, JPEG, TIFF or AVIF without the metadata that decides nothing about its pixels.

    None when there is none, or when the file is of another format or too damaged to be taken apart.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        stripped = _png(data)
    elif data.startswith(b"\xff\xd8"):
        stripped = _jpeg(data)
    elif data.startswith((b"II", b"MM")):
        stripped = _tiff(data)
    elif data[4:8] == b"ftyp":
        # The orientation of an AVIF stands outside of its EXIF, which Pillow writes anew with it.
        stripped = _EXIF_FIELDS.sub(rb"\1\0\0", data)
    else:
        return None
    return None if stripped == data else stripped


def _png(data: bytes) -> bytes | None:
    """A PNG without what decides no pixel, and without ancillary chunks with a wrong checksum, as libpng reads it."""
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            parts.append(data[position:])  # cut off, which Pillow is to find
            break
        is_ancillary = bool(kind[0] & 0x20)
        whole = zlib.crc32(data[position + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if kind in _PNG_CHUNKS and (whole or not is_ancillary):
            parts.append(data[position:end])
        elif not is_ancillary:
            return None  # an unknown chunk that a reader must know
        position = end
    return b"".join(parts)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG before its first scan: marker, where it starts, and where it ends."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN or not position + 4 <= end <= len(data):
            return
        yield marker, position, end
        position = end


def _jpeg(data: bytes) -> bytes | None:
    """A JPEG without application segments and comments before its first scan, except Exif and what gives colours."""
    parts, position = [data[:2]], 2
    for marker, start, position in jpeg_segments(data):
        contents = data[start + 4 : position]
        is_metadata = _JFIF <= marker <= _JFIF + 15 or marker == _COMMENT
        is_needed = {
            _JFIF: len(contents) >= 14,
            _EXIF: contents.startswith(b"Exif\0\0"),
            _ADOBE: contents.startswith(b"Adobe"),
        }
        if is_needed.get(marker, not is_metadata):
            parts.append(data[start:position])
    return b"".join([*parts, data[position:]])


def _tiff(data: bytes) -> bytes | None:
    """A TIFF whose first page's metadata have no type, by which readers pass over them."""
    order, is_big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    size = 20 if is_big else 12  # of a field
    changed = bytearray(data)
    try:
        (directory,) = struct.unpack_from(order + ("Q" if is_big else "L"), data, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, directory)
        first = directory + (8 if is_big else 2)
        for start in range(first, min(first + size * count, len(data) - size + 1), size):
            (tag,) = struct.unpack_from(order + "H", data, start)
            if tag in _TIFF_METADATA:
                changed[start + 2 : start + 4] = _NO_TYPE
    except (struct.error, OverflowError):
        return None
    return bytes(changed)
