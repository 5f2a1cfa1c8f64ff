"""Tones are kept whatever the numbers of a picture, and transparent colours count in the bits of the file."""

import struct

import numpy as np
import pytest

from tests.pipeline.images.corpus import chunk, encoded, picture_of, png, tiff

RAMP = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))  # uint8 [16, 16], brighter to the right


def floats(tones: np.ndarray) -> bytes:
    return tiff(tones.astype(np.float32), bits=32, form=3)


def pfm(tones: np.ndarray) -> bytes:
    return b"Pf\n16 16\n-1.0\n" + tones[::-1].astype("<f4").tobytes()


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
    assert np.abs(picture_of(data[1]).astype(int) - RAMP[..., None]).max() <= 1


def test_dark_pictures_of_a_known_range_stay_dark() -> None:
    dark = RAMP // 16
    for data in (tiff(dark.astype(np.int32), bits=32), floats(dark / 255), encoded(dark.astype(np.uint16), "PNG")):
        assert picture_of(data).max() <= 16


def test_what_is_no_number_is_white_and_what_is_endless_is_at_an_end() -> None:
    tones = RAMP / 255
    tones[0, 0], tones[1, 0], tones[2, 15] = np.nan, np.inf, -np.inf
    shown = picture_of(floats(tones))
    assert shown[0, 0, 0] == shown[1, 0, 0] == 255 and shown[2, 15, 0] == 0
    assert picture_of(floats(np.full((16, 16), np.nan))).min() == 255
    assert 120 < picture_of(floats(np.full((16, 16), 1e6))).mean() < 136


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
    opaque = picture_of(data.replace(b"tRNS", b"teST"))  # a chunk of another name, whose checksum is wrong now
    assert np.array_equal(picture_of(data), np.where(transparent[..., None], 255, opaque))
