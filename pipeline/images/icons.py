"""Pictures within icon files, taken out before Pillow decodes them whatever their size. Pure.

An icon names sizes of at most 1,024 pixels a side, and may hold a PNG or a JPEG 2000 of any size.
"""

import io
import struct

from PIL import IcnsImagePlugin, IcoImagePlugin

from pipeline.images.rejection import Reason, RefusedError

_JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")


def picture_within(name: str, data: bytes, max_pixels: int) -> bytes | None:
    """The PNG or JPEG 2000 that an ICO or ICNS file shows; None when it holds pixels of its own.

    Raises RefusedError for an ICO of more pixels than `max_pixels`, and what Pillow raises for a damaged one.
    """
    if name == "ICNS":
        icon = IcnsImagePlugin.IcnsFile(io.BytesIO(data))
        codes = [code for code, _ in icon.SIZES[icon.bestsize()] if code in icon.dct]
        for start, length in (icon.dct[code] for code in codes):
            block = data[start : start + length]
            if block.startswith((b"\x89PNG", *_JPEG_2000)):
                return block
        return None
    entries = IcoImagePlugin.IcoFile(io.BytesIO(data)).entry
    block = data[entries[0].offset :]
    if block.startswith(b"\x89PNG"):
        return block
    header = int.from_bytes(block[:4], "little")
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", block, 4)
    if header <= 124 and abs(width * height) // 2 > max_pixels:  # the height counts the mask too
        raise RefusedError(Reason.DECOMPRESSION_BOMB, f"{width}x{height // 2} is over {max_pixels} pixels")
    return None
