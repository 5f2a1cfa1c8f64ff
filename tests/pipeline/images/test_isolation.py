"""Decoding in a child process: the same pictures; a crash, a hang or too much memory costs one image."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.images import decode
from pipeline.images.decode import Pictures, Recipe
from pipeline.images.isolation import IsolatedDecoder
from pipeline.images.rejection import Reason, Rejection
from tests.pipeline.test_operating_system import ENFORCED

RECIPE = Recipe(resolution=16, smallest_side=1, max_pixels=200_000_000, crops=0)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def huge() -> bytes:
    """A PNG of 81 million pixels, which takes about a second to decode and a few hundred megabytes."""
    return png(Image.new("RGB", (9000, 9000), (200, 30, 30)))


def test_isolated_decoding_equals_decoding_in_this_process(photos: np.ndarray) -> None:
    recipe = Recipe(resolution=16, smallest_side=20, max_pixels=10**6, crops=2, seed=3)
    inputs = {
        "photo": png(Image.fromarray(photos[3])),
        "empty": b"",
        "text": b"no image",
        "cut": png(Image.fromarray(photos[3]))[:500],
        "small": png(Image.fromarray(photos[3][:10])),
        "again": png(Image.fromarray(photos[7])),
    }
    with IsolatedDecoder(recipe, 30) as decoder:
        for key, data in inputs.items():
            expected, actual = decode.decode(data, recipe, key), decoder.decode(data, key)
            if isinstance(expected, Rejection):
                assert actual == expected
            else:
                assert isinstance(actual, Pictures)
                assert np.array_equal(actual.pixels, expected.pixels)
                assert (actual.width, actual.height) == (expected.width, expected.height)


def test_an_image_that_takes_too_long_is_refused_and_the_next_decoded(photos: np.ndarray, huge: bytes) -> None:
    with IsolatedDecoder(RECIPE, 0.2) as decoder:
        assert isinstance(decoder.decode(png(Image.fromarray(photos[3])), "first"), Pictures)
        late = decoder.decode(huge, "huge")
        assert isinstance(late, Rejection)
        assert (late.reason, late.detail) == (Reason.TIME_OUT, "decoding took more than 0.2 s")
        assert isinstance(decoder.decode(png(Image.fromarray(photos[3])), "next"), Pictures)


def test_a_decoder_that_dies_costs_one_image(photos: np.ndarray) -> None:
    small = png(Image.fromarray(photos[3]))
    # Other tests of this process may have left children, say multiprocessing's resource tracker.
    before = set(psutil.Process().children())
    with IsolatedDecoder(RECIPE, 30) as decoder:
        decoder.decode(small, "first")
        (child,) = set(psutil.Process().children()) - before
        os.kill(child.pid, signal.SIGSEGV)
        child.wait(10)
        dead = decoder.decode(small, "second")
        assert isinstance(dead, Rejection)
        assert dead.reason == Reason.DECODER_CRASH
        assert isinstance(decoder.decode(small, "third"), Pictures)
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("platform", [ENFORCED, "darwin"])
def test_an_image_that_needs_too_much_memory_is_refused(huge: bytes, photos: np.ndarray, platform: str) -> None:
    # The bound follows max_pixels; without the margin for the interpreter and a file, this image is beyond it.
    code = f"""
from functools import partial
from pipeline.images import isolation
isolation.bound_memory = partial(isolation.bound_memory, platform={platform!r})
isolation._SPARE_BYTES = 32 * 1024 * 1024
isolation._BYTES_PER_PIXEL = 1
isolation.main()
"""
    decoder = IsolatedDecoder(RECIPE, 60)
    decoder._child = subprocess.Popen(
        [sys.executable, "-c", code, '{"resolution": 16, "smallest_side": 1, "max_pixels": 100000000}'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    with decoder:
        hungry = decoder.decode(huge, "huge")
        assert isinstance(hungry, Rejection)
        assert hungry.reason == Reason.OUT_OF_MEMORY
        assert isinstance(decoder.decode(png(Image.fromarray(photos[3])), "next"), Pictures)
