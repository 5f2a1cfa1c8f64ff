"""Damage of any kind, in a file of any format, ends in a picture or in a reason: nothing is raised."""

import zlib
from collections import defaultdict

import numpy as np
import pytest

from pipeline.images import formats
from pipeline.images.decode import Pictures, Recipe, decode
from pipeline.images.rejection import Reason, Rejection
from tests.pipeline.images.corpus import corpus

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of much damage
RECIPE = Recipe(resolution=8, smallest_side=1, max_pixels=50_000)
DAMAGE = {
    Reason.ZERO_BYTES,
    Reason.NOT_AN_IMAGE,
    Reason.UNSUPPORTED,
    Reason.TRUNCATED,
    Reason.CORRUPT,
    Reason.DECOMPRESSION_BOMB,
    Reason.OUT_OF_MEMORY,
}
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
IN_CHECK, LONG = 20, 1250  # examples of a format


def files_by_format() -> dict[str, list[bytes]]:
    """Small files of each format that is read."""
    files = defaultdict(list)
    for data in corpus().values():
        if (name := formats.format_of(data)) and len(data) < 16_000:
            files[name].append(data)
    return files


def damaged(data: bytes, others: list[bytes], random: np.random.Generator) -> bytes:
    """A file with one to three damages: cut, overwritten, shifted, or mixed with another file of its format."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 4)):
        place = int(len(changed) * random.random() ** random.integers(1, 5))  # more often in the headers, at the front
        length = int(random.integers(1, 1 + min(64, len(changed) - place))) if place < len(changed) else 0
        match random.integers(7):
            case 0:
                del changed[place:]
            case 1:
                changed[place : place + length] = random.bytes(length)
            case 2:
                width = int(random.choice((1, 2, 4)))
                value = int(random.choice(EXTREMES)) & (256**width - 1)
                changed[place : place + width] = value.to_bytes(width, random.choice(("little", "big")))
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case 5 if place < len(changed):
                changed[place] ^= 1 << int(random.integers(8))
            case 6:
                other = others[random.integers(len(others))]
                changed[place:] = other[int(len(other) * random.random()) :]
    return bytes(changed)


def decode_damaged(file_format: str, examples: int) -> None:
    files = files_by_format()[file_format]
    random = np.random.default_rng(zlib.crc32(file_format.encode()))
    for number in range(examples):
        data = damaged(files[number % len(files)], files, random)
        outcome = decode(data, RECIPE, "key")
        if isinstance(outcome, Pictures):
            assert outcome.pixels.shape == (1, 8, 8, 3)
            continue
        assert isinstance(outcome, Rejection)
        assert outcome.reason in DAMAGE
        assert outcome.detail and outcome.detail.isprintable()
        assert (outcome.reason == Reason.NOT_AN_IMAGE) <= (formats.format_of(data) is None)


@pytest.mark.parametrize("file_format", [known.name for known in formats.FORMATS])
def test_damage_never_raises(file_format: str) -> None:
    decode_damaged(file_format, IN_CHECK)


@pytest.mark.long
@pytest.mark.parametrize("file_format", [known.name for known in formats.FORMATS])
def test_much_damage_never_raises(file_format: str) -> None:
    decode_damaged(file_format, LONG)
