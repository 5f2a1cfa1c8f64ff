"""Metadata of any kind cost no pixel, and a picture is upright whatever else they say."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.images.corpus import PHOTO, chunk, encoded, exif, jpeg_with, picture_of, png_with, tiff

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")
HALVES = np.zeros((24, 24, 3), np.uint8)
HALVES[:, :12] = 255  # white on the left; on top once it is turned by orientation 6


LARGE_PROFILE = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000)))
LARGE_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000)))
WRONG_TIME = struct.pack(">L", 7) + b"tIME" + b"\x07\xe4\1\1\0\0\0" + bytes(4)
BROKEN_PHOTOSHOP = b"Photoshop 3.0\x008BIM\x04\x04\xff"
BROKEN_INDEX = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H2HLLL", 1, 0xB001, 4, 1, 9, 0)


@pytest.mark.parametrize(
    "data",
    {
        "a profile of more than a megabyte": png_with(LARGE_PROFILE),
        "a text of more than a megabyte": png_with(LARGE_TEXT),
        "a large text behind the pixels": png_with()[:-12] + LARGE_TEXT + png_with()[-12:],
        "a time with a wrong checksum": png_with(WRONG_TIME),
        "a resolution that is cut": png_with(chunk(b"pHYs", b"\0")),
        "an animation out of order": png_with(chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", b"\xff" * 26)),
        "a damaged block of Photoshop's": jpeg_with((0xED, BROKEN_PHOTOSHOP)),
        "a damaged index of pictures": jpeg_with((0xE2, BROKEN_INDEX)),
        "a JFIF header that is cut": jpeg_with((0xE0, b"JFIF\0")),
        "a profile in wrong pieces": jpeg_with((0xE2, b"ICC_PROFILE\0")),
        "XMP as a text in TIFF": tiff(PHOTO, samples=3, photometric=2, texts={700: b"<x/>\0"}),
        "a resolution in words in TIFF": tiff(
            PHOTO, order=">", samples=3, photometric=2, unit=3, texts={282: b"72 dpi\0", 283: b"72 dpi\0"}
        ),
        "no EXIF in EXIF": jpeg_with((0xE1, b"Exif\0\0")),
        "EXIF of another order": jpeg_with((0xE1, b"Exif\0\0XX*\0\x08\0\0\0")),
        "EXIF that is cut": jpeg_with((0xE1, exif(6)[:15])),
        "EXIF whose place lies outside": jpeg_with((0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
        "EXIF of 65,535 fields": jpeg_with((0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
        "an orientation of 0": jpeg_with((0xE1, exif(0))),
        "an orientation of 9": jpeg_with((0xE1, exif(9))),
        "an orientation in words": jpeg_with((0xE1, exif(6).replace(struct.pack("<HH", 0x112, 3), b"\x12\1\2\0"))),
        "EXIF in PNG that is no number": png_with(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nzz")),
    }.items(),
    ids=lambda row: row[0],
)
def test_metadata_that_pillow_stumbles_over_costs_no_pixel(data: tuple[str, bytes]) -> None:
    whole = jpeg_with() if data[1][:1] == b"\xff" else png_with()  # TIFF and PNG lose nothing
    assert np.array_equal(picture_of(data[1]), picture_of(whole))


def avif_with_words_for_numbers() -> bytes:
    """An AVIF to be turned, whose EXIF has a text where the resolution is a number."""
    fields = Image.Exif()
    fields[0x112], fields[0x11A] = 6, 72.0
    data = encoded(HALVES, "AVIF", exif=fields, quality=100)
    number, text = struct.pack(">HH", 0x11A, 5), struct.pack(">HH", 0x11A, 2)
    assert data.count(number) == 1
    return data.replace(number, text)


@pytest.mark.parametrize(
    "data",
    {
        "JPEG": encoded(HALVES, "JPEG", quality=95)[:2]
        + struct.pack(">BBH", 0xFF, 0xE1, len(exif(6)) + 2)
        + exif(6)
        + encoded(HALVES, "JPEG", quality=95)[2:],
        "PNG": encoded(HALVES, "PNG", exif=exif(6)),
        "WebP": encoded(HALVES, "WEBP", lossless=True, exif=exif(6)),
        "AVIF": avif_with_words_for_numbers(),
        "TIFF": tiff(HALVES, samples=3, photometric=2, orientation=6),
        "XMP": encoded(HALVES, "PNG", pnginfo=None)[:33]
        + chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
        + encoded(HALVES, "PNG")[33:],
    }.items(),
    ids=lambda row: row[0],
)
def test_a_picture_is_upright_whatever_else_its_metadata_says(data: tuple[str, bytes]) -> None:
    shown = picture_of(data[1])
    assert shown[:7].min() > 240 and shown[9:].max() < 15
