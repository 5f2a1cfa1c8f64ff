"""No more pixels are decoded than are allowed, be the picture inside of an icon."""

import struct

import numpy as np
import pytest

from pipeline.images.rejection import Reason, Rejection
from tests.pipeline.images.corpus import chunk, icns, outcome_of, png

BOMB = png(np.zeros((1, 1, 3), np.uint8), 2)
BOMB = BOMB[:8] + chunk(b"IHDR", struct.pack(">2I5B", 30_000, 30_000, 8, 2, 0, 0, 0)) + BOMB[33:]
ICON = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(BOMB), 22) + BOMB
BITMAP_ICON = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, 40, 22)
BITMAP_ICON += struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("data", [BOMB, ICON, BITMAP_ICON, icns(ic10=BOMB)], ids=["PNG", "ICO", "bitmap", "ICNS"])
def test_no_more_pixels_are_decoded_than_are_allowed(data: bytes) -> None:
    outcome = outcome_of(data)
    assert isinstance(outcome, Rejection) and outcome.reason == Reason.DECOMPRESSION_BOMB
