"""What is whole and not read, what is damaged and what is no image are told apart: one situation a row."""

import struct
import zlib

import numpy as np
import pytest

from pipeline.images.rejection import Reason, Rejection
from tests.pipeline.images.corpus import bmp, chunk, encoded, jpeg_with, outcome_of, png_with, psd, tiff

RAMP = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))  # uint8 [16, 16], brighter to the right
PLAIN = np.full((16, 16, 3), 90, np.uint8)


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
    "SVG with a byte order mark": b'\xef\xbb\xbf<svg xmlns="http://www.w3.org/2000/svg"/>',
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


DETAILS = {
    b"<!DOCTYPE html>\n<html>": "a text: <!DOCTYPE html> <html>",
    b'{"error": "not found"}': 'a text: {"error": "not found"}',
    b"\x1b[31mred": "starts with 1b5b33316d726564",
    b"version https://git-lfs.github.com/spec/v1\noid": "a Git LFS pointer: fetch the file with `git lfs pull`",
    b"/annex/objects/SHA256E-s1--00.jpg": "a git-annex pointer: fetch the file with `git annex get`",
    b"\x1f\x8b\x08\0": "compressed by gzip: decompress it",
    b"PK\3\4" + bytes(9): "starts with 504b030400000000",
}


@pytest.mark.parametrize("data", DETAILS)
def test_what_is_no_image_is_described(data: bytes) -> None:
    assert outcome_of(data) == Rejection(reason=Reason.NOT_AN_IMAGE, detail=DETAILS[data])


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_called_so(name: str) -> None:
    outcome = outcome_of(NO_IMAGES[name])
    assert isinstance(outcome, Rejection) and outcome.reason == Reason.NOT_AN_IMAGE, outcome
