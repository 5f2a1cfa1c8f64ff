"""Files without their metadata, for those whose metadata Pillow stumbles over though their pixels are whole. Pure."""

import struct
import zlib
from collections.abc import Iterator

# What decides pixels and orientation.
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}
_JFIF, _EXIF, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xEE, 0xFE
_START_OF_SCAN = 0xDA


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG without the metadata that decides nothing about its pixels.

    None when there is none, or when the file is of another format or too damaged to be taken apart.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        stripped = _png(data)
    elif data.startswith(b"\xff\xd8"):
        stripped = _jpeg(data)
    else:
        return None
    return stripped if stripped is not None and len(stripped) < len(data) else None


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
