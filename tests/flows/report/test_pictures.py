"""Pictures are small files whatever they show, without loss where that is small enough, and move over the steps."""

import io

import numpy as np
import pytest
from PIL import Image

from flows.report import pictures
from igpt_model.tracking.sheets import to_png


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def test_a_small_tile_is_exact() -> None:
    image = noise(32, 32)
    opened = Image.open(io.BytesIO(pictures.tile(image)))
    assert opened.format == "WEBP" and np.array_equal(np.asarray(opened.convert("RGB")), image)


@pytest.mark.parametrize("side", [256, 1024])
def test_a_tile_and_a_sheet_are_bounded_whatever_they_show(side: int) -> None:
    assert len(pictures.tile(noise(side, side))) <= pictures._TILE_BYTES
    assert len(pictures.sheet(to_png(noise(2 * side, side)))) <= pictures._SHEET_BYTES


def frames_of(data: bytes) -> list[np.ndarray]:
    opened = Image.open(io.BytesIO(data))
    assert opened.format == "WEBP"
    frames = []
    for number in range(opened.n_frames):
        opened.seek(number)
        frames.append(np.asarray(opened.convert("RGB")))
    return frames


def test_sheets_of_the_steps_become_one_moving_picture_in_their_order() -> None:
    sheets = {step: to_png(np.full((40, 90, 3), shade, np.uint8)) for step, shade in ((300, 250), (5, 10), (100, 120))}
    frames = frames_of(pictures.moving(sheets) or b"")
    assert [int(frame[-1, -1, 0]) for frame in frames] == [10, 120, 250]
    assert all(frame.shape == (40 + pictures._BAR, 90, 3) for frame in frames)
    assert all((frame[: pictures._BAR] == 0).any() for frame in frames), "the step is written above"


def test_what_does_not_move_is_no_moving_picture() -> None:
    small, large = (to_png(noise(side, side)) for side in (20, 40))
    for sheets in ({}, {1: small}, {1: small, 2: large}):
        assert pictures.moving(sheets) is None


def test_a_moving_picture_has_few_frames_with_the_first_and_the_last() -> None:
    sheets = {step: to_png(np.full((8, 8, 3), step, np.uint8)) for step in range(100)}
    shades = [int(frame[-1, -1, 0]) for frame in frames_of(pictures.moving(sheets) or b"")]
    assert len(shades) == pictures.FRAMES and shades[0] == 0 and shades[-1] == 99 and shades == sorted(shades)


def test_a_moving_picture_is_bounded_whatever_it_shows() -> None:
    sheet = to_png(noise(1500, 1500))
    assert len(pictures.moving(dict.fromkeys(range(20), sheet)) or b"") <= pictures._MOVING_BYTES
