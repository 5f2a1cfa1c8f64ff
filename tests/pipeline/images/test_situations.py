"""Situations that people report of image loaders, one a row, with the right picture or the right reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decode as decode_module
from pipeline.images.decode import Pictures, Recipe, decode, decode_opened
from pipeline.images.rejection import Reason, Rejection
from tests.pipeline.images.corpus import PHOTO, bmp, chunk, encoded, exif, icns, jpeg_with, png, png_with, psd, tiff

RAMP = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))  # uint8 [16, 16], brighter to the right
HALVES = np.zeros((24, 24, 3), np.uint8)
HALVES[:, :12] = 255  # white on the left; on top once it is turned by orientation 6
PLAIN = np.full((16, 16, 3), 90, np.uint8)


def outcome_of(data: bytes, resolution: int = 16, max_pixels: int = 10**6) -> Pictures | Rejection:
    return decode(data, Recipe(resolution=resolution, smallest_side=1, max_pixels=max_pixels))


def picture(data: bytes) -> np.ndarray:
    """uint8 [16, 16, 3]."""
    outcome = outcome_of(data)
    assert isinstance(outcome, Pictures), outcome
    return outcome.pixels[0]


def floats(tones: np.ndarray) -> bytes:
    return tiff(tones.astype(np.float32), bits=32, form=3)


def pfm(tones: np.ndarray) -> bytes:
    return b"Pf\n16 16\n-1.0\n" + tones[::-1].astype("<f4").tobytes()


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
    assert np.array_equal(picture(data[1]), picture(whole))


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
    shown = picture(data[1])
    assert shown[:7].min() > 240 and shown[9:].max() < 15


@pytest.mark.parametrize(
    "data",
    {
        "16 bits": encoded(RAMP.astype(np.uint16) * 257, "PNG"),
        "16 bits in TIFF": tiff(RAMP.astype(np.uint16) * 257, bits=16),
        "16 bits in JPEG 2000": encoded(RAMP.astype(np.uint16) * 257, "JPEG2000"),
        "16 bits, white is zero": tiff(65535 - RAMP.astype(np.uint16) * 257, bits=16, photometric=0),
        "16 bits up to 4095": b"P5 16 16 4095\n" + (RAMP * (4095 / 255)).round().astype(">u2").tobytes(),
        "signed 16 bits to 255": tiff(RAMP.astype(np.int16), bits=16, form=2),
        "signed 16 bits from -1000 to 3000": tiff((RAMP * (4000 / 255) - 1000).astype(np.int16), bits=16, form=2),
        "32 bits to 255": tiff(RAMP.astype(np.int32), bits=32, form=2),
        "32 bits to 4095": tiff((RAMP * (4095 / 255)).round().astype(np.int32), bits=32, form=2),
        "32 bits to 65,535": tiff(RAMP.astype(np.uint32) * 257, bits=32),
        "32 bits to their end": tiff((RAMP.astype(np.uint64) * (2**32 - 1) // 255).astype(np.uint32), bits=32),
        "floats to 1": floats(RAMP / 255),
        "floats a little over 1": floats(np.where(RAMP == 255, 1.04, np.where(RAMP == 0, -0.04, RAMP / 255))),
        "floats to 255": floats(RAMP),
        "floats a little over 255": floats(np.where(RAMP == 255, 255.6, RAMP)),
        "floats to 65,535": floats(RAMP * 257.0),
        "floats to 16": floats(RAMP / 255 * 16),
        "floats to 1,000": floats(RAMP / 255 * 1000),
        "floats from -1 to 1": floats(RAMP / 127.5 - 1),
        "floats of heights": floats(RAMP / 255 * 800 + 1200),
        "floats, white is zero": tiff((1 - RAMP / 255).astype(np.float32), bits=32, form=3, photometric=0),
        "PFM": pfm(RAMP / 255),
        "PFM to 255": pfm(RAMP),
    }.items(),
    ids=lambda row: row[0],
)
def test_tones_are_kept_whatever_the_numbers(data: tuple[str, bytes]) -> None:
    assert np.abs(picture(data[1]).astype(int) - RAMP[..., None]).max() <= 1


def test_dark_pictures_of_a_known_range_stay_dark() -> None:
    dark = RAMP // 16
    for data in (tiff(dark.astype(np.int32), bits=32), floats(dark / 255), encoded(dark.astype(np.uint16), "PNG")):
        assert picture(data).max() <= 16


def test_what_is_no_number_is_white_and_what_is_endless_is_at_an_end() -> None:
    tones = RAMP / 255
    tones[0, 0], tones[1, 0], tones[2, 15] = np.nan, np.inf, -np.inf
    shown = picture(floats(tones))
    assert shown[0, 0, 0] == shown[1, 0, 0] == 255 and shown[2, 15, 0] == 0
    assert picture(floats(np.full((16, 16), np.nan))).min() == 255
    assert 120 < picture(floats(np.full((16, 16), 1e6))).mean() < 136


def key(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


FINE = np.arange(256, dtype=np.uint16).reshape(16, 16) + 0x1200  # differ in the lower byte only
FINE_RGB = np.dstack([FINE, FINE // 2 + 0x3000, np.full_like(FINE, 0x4567)])


@pytest.mark.parametrize(
    ("data", "transparent"),
    [
        (png(RAMP >> 7, 0, key(1), bits=1), RAMP >= 128),
        (png(RAMP >> 6, 0, key(1), bits=2), RAMP >> 6 == 1),
        (png(RAMP >> 4, 0, key(5), bits=4), RAMP >> 4 == 5),
        (png(RAMP, 0, key(17)), RAMP == 17),
        (png(FINE, 0, key(0x1211), bits=16), FINE == 0x1211),
        (png(FINE, 0, key(0x1211), bits=16, interlaced=True), FINE == 0x1211),
        (png(FINE_RGB, 2, key(0x1220, 0x3000 + 0x910, 0x4567), bits=16), FINE == 0x1220),
        (png(FINE_RGB, 2, key(0x1220, 0x3000 + 0x910, 0x4567), bits=16, interlaced=True), FINE == 0x1220),
        (png(FINE_RGB, 2, key(0x1220, 0x3000 + 0x910, 0x4500), bits=16), FINE < 0),
    ],
)
def test_a_transparent_colour_counts_in_the_bits_of_the_file(data: bytes, transparent: np.ndarray) -> None:
    opaque = picture(data.replace(b"tRNS", b"teST"))  # a chunk of another name, whose checksum is wrong now
    assert np.array_equal(picture(data), np.where(transparent[..., None], 255, opaque))


BOMB = png(np.zeros((1, 1, 3), np.uint8), 2)
BOMB = BOMB[:8] + chunk(b"IHDR", struct.pack(">2I5B", 30_000, 30_000, 8, 2, 0, 0, 0)) + BOMB[33:]
ICON = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(BOMB), 22) + BOMB
BITMAP_ICON = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, 40, 22)
BITMAP_ICON += struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("data", [BOMB, ICON, BITMAP_ICON, icns(ic10=BOMB)], ids=["PNG", "ICO", "bitmap", "ICNS"])
def test_no_more_pixels_are_decoded_than_are_allowed(data: bytes) -> None:
    outcome = outcome_of(data)
    assert isinstance(outcome, Rejection) and outcome.reason == Reason.DECOMPRESSION_BOMB


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "GIF", "BMP"])
def test_more_pixels_than_pillow_allows_are_decoded_when_the_config_says_so(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(decode_module, "_PILLOWS_LIMIT", 100)
    data = encoded(PLAIN, file_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(outcome_of(data, max_pixels=256), Pictures)
        assert isinstance(outcome_of(data, max_pixels=255), Rejection)


def iso(*brands: bytes) -> bytes:
    """The first box of an ISO media file."""
    body = brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(64)


def jpeg_frame(marker: int, bits: int = 8, bands: int = 3) -> bytes:
    """A JPEG whose frame is of another kind."""
    data = jpeg_with()
    at = data.index(b"\xff\xc0")
    fields = bytes([bits]) + data[at + 5 : at + 9] + bytes([bands]) + data[at + 10 : at + 10 + 3 * bands]
    old = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + struct.pack(">BBH", 0xFF, marker, 2 + len(fields)) + fields + data[old:]


ROWS = bytes(32 * 40 * 4)
UNSUPPORTED = {
    "TIFF of five bands": tiff(bytes(16 * 16 * 5), samples=5, size=(16, 16)),
    "TIFF of 64-bit floats": tiff(np.linspace(0, 1, 256).reshape(16, 16), bits=64, form=3),
    "TIFF of an unknown compression": tiff(RAMP, compression=34661),
    "BMP of 2 bits": bmp(ROWS, 2, colours=bytes(16)),
    "BMP with odd masks": bmp(ROWS, 32, 3, (0x3FF, 0xFFC00, 0x3FF00000)),
    "BMP with a JPEG": bmp(jpeg_with(), 24, 4),
    "JPEG of 12 bits": jpeg_frame(0xC1, bits=12),
    "JPEG of two bands": jpeg_frame(0xC0, bands=2),
    "JPEG without loss": jpeg_frame(0xC3),
    "JPEG-LS": jpeg_frame(0xF7),
    "PSD of 16 bits": psd(np.zeros((3, 16, 32), np.uint8), 3, bits=16),
    "PSD in a zip": psd(np.zeros((3, 16, 16), np.uint8), 3)[:38] + b"\0\2" + zlib.compress(bytes(768)),
    "PSB": b"8BPS\0\2" + bytes(100),
    "an iPhone's PNG": b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", b"\x50\0\x20\6") + png_with()[8:],
    "HEIF": iso(b"heic", b"mif1", b"heic"),
    "HEIF of any coding": iso(b"mif1", b"mif1", b"heix"),
    "JPEG XL": b"\xff\x0a" + bytes(64),
    "JPEG XL in boxes": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "FITS": b"SIMPLE  =                    T".ljust(2880),
    "DICOM": bytes(128) + b"DICM" + bytes(64),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(64),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_whole_and_not_read_is_told_from_damage(name: str) -> None:
    outcome = outcome_of(UNSUPPORTED[name])
    assert isinstance(outcome, Rejection) and outcome.reason == Reason.UNSUPPORTED, outcome
    assert outcome.detail


DAMAGED = {
    "a PNG's first bytes": png_with()[:8],
    "a PNG as text": png_with().replace(b"\r\n", b"\n"),
    "a PNG with a damaged header": png_with()[:20] + b"\1" + png_with()[21:],
    "a PNG without pixels": png_with()[:33] + png_with()[-12:],
    "a JPEG's first bytes": jpeg_with()[:2],
    "a JPEG's header": jpeg_with()[:200],
    "a JPEG of zeros": b"\xff\xd8\xff\xe0" + bytes(400),
    "a GIF's first bytes": encoded(PLAIN, "GIF")[:6],
    "half a WebP": encoded(PLAIN, "WEBP")[:40],
    "half a TIFF": encoded(PLAIN, "TIFF")[:400],
    "half a BMP": encoded(PLAIN, "BMP")[:400],
    "a BMP's header": encoded(PLAIN, "BMP")[:30],
    "half an AVIF": encoded(PLAIN, "AVIF")[:200],
    "half a JPEG 2000": encoded(PLAIN, "JPEG2000")[:100],
    "half a TGA": encoded(PLAIN, "TGA")[:100],
    "half a PSD": psd(np.zeros((3, 16, 16), np.uint8), 3)[:100],
    "half an icon": encoded(PLAIN, "ICO")[:60],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_known_signature_is_an_image(name: str) -> None:
    outcome = outcome_of(DAMAGED[name])
    assert isinstance(outcome, Rejection) and outcome.reason in {Reason.TRUNCATED, Reason.CORRUPT}, outcome


NO_IMAGES = {
    "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "a document": b"%PDF-1.7\n" + bytes(64),
    "a table": b"file_name,label\na.png,cat\n",
    "a text that begins as a BMP": b"BMW sells cars, and this is a text about them.\n",
    "a text that begins as a PGM": b"P5 was the fifth of its kind.\n",
    "a program": b"#define WIDTH 3\nint main() {}\n",
    "comments": b"/* */ " * 10_000,
    "a long comment": b"/*" + b"*" * 100_000,
    "a film": iso(b"isom", b"isom", b"mp41"),
    "a sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(64),
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a zip": b"PK\3\4" + bytes(64),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_called_so(name: str) -> None:
    outcome = outcome_of(NO_IMAGES[name])
    assert isinstance(outcome, Rejection) and outcome.reason == Reason.NOT_AN_IMAGE, outcome


def test_an_image_that_pillow_holds_gives_what_its_file_gives() -> None:
    recipe = Recipe(resolution=16, smallest_side=1, max_pixels=10**6)
    for data in (encoded(HALVES, "PNG", exif=exif(6)), png(FINE_RGB, 2, key(0x1220, 0x3910, 0x4567), bits=16)):
        opened = decode_opened(Image.open(io.BytesIO(data)), recipe)
        assert isinstance(opened, Pictures) and np.array_equal(opened.pixels[0], picture(data))
    for mode in ("YCbCr", "HSV", "LAB", "CMYK", "La", "RGBa", "PA"):
        rgb = Image.fromarray(PLAIN).quantize(4) if mode == "PA" else Image.fromarray(PLAIN)
        image = rgb.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, rgb.mode)).convert(mode)
        opened = decode_opened(image, recipe)
        assert isinstance(opened, Pictures) and np.abs(opened.pixels[0].astype(int) - PLAIN).max() <= 2, mode
    cut = decode_opened(Image.open(io.BytesIO(png_with()[:300])), recipe)
    assert isinstance(cut, Rejection) and cut.reason == Reason.TRUNCATED
