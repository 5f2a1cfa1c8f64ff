"""What a page shows of a picture is what a dataset and a model make of it."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flows.playground import pictures
from flows.playground.limits import Limits
from flows.playground.pictures import Square
from igpt_model.inference.images import decode_picture
from pipeline.errors import IgptError
from tests.igpt_model.registry.test_serving import file_of, make_bundle


def pixels_of(url: str) -> np.ndarray:
    """The picture in a data URL."""
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (64, 64), (1, 9)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_square_in_the_middle_is_that_of_every_command(
    size: tuple[int, int], orientation: int, photos: np.ndarray
) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(photos[3, : size[0], : size[1]]).save(buffer, "PNG", exif=exif)
    picture = pictures.opened(buffer.getvalue(), Limits())
    square = pictures.cropped(picture, Square.centre(*picture.size), 16)
    assert np.array_equal(square, decode_picture(buffer.getvalue(), "x", 16))


def test_a_chosen_square_is_what_is_cropped(photos: np.ndarray) -> None:
    picture = Image.fromarray(photos[3])
    corner = pictures.cropped(picture, Square(left=0.5, top=0.25, side=0.5), 32)
    assert np.array_equal(corner, photos[3, 16:48, 32:])


@given(*[st.floats(allow_nan=False, allow_infinity=False)] * 3, st.integers(1, 50), st.integers(1, 50))
def test_a_square_is_in_the_picture_whatever_a_browser_sends(
    left: float, top: float, side: float, width: int, height: int
) -> None:
    x, y, right, bottom = Square(left=left, top=top, side=side).box(width, height)
    assert 0 <= x < right <= width and 0 <= y < bottom <= height and right - x == bottom - y


def test_a_large_picture_is_averaged_down(photos: np.ndarray) -> None:
    data = file_of(photos[3], "PNG")
    small = pictures.opened(data, Limits(kept_pixels=32 * 32))
    assert small.size == (32, 32)
    exact = photos[3].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(small) - exact).max() <= 0.5
    assert pictures.opened(data, Limits(kept_pixels=64 * 64)).size == (64, 64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"%PDF-1.7", "not an image"),
        (b"\x89PNG\r\n\x1a\n123", "png|PNG|truncated|corrupt"),
        (b"x" * 4000, "4,000 bytes: 3,000 are the most"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(data: bytes, reason: str) -> None:
    with pytest.raises(IgptError, match=reason) as refusal:
        pictures.opened(data, Limits(file_bytes=3000))
    assert "\n" not in str(refusal.value)


def test_too_many_pixels_are_refused(photos: np.ndarray) -> None:
    with pytest.raises(IgptError, match="decompression bomb"):
        pictures.opened(file_of(photos[3], "PNG"), Limits(pixels=1000))


def test_a_picture_is_shown_in_the_colours_that_the_model_is_given(photos: np.ndarray) -> None:
    bundle = make_bundle()
    picture = photos[3, :8, :8]
    palette_K3 = np.rint((bundle.palette_K3 + 1) * 127.5).astype(np.uint8)
    assert np.array_equal(pictures.as_seen(picture, palette_K3), bundle.pictures(bundle.quantize(picture[None]))[0])


def test_pixels_that_are_not_final_are_transparent() -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    known = np.zeros((4, 4), bool)
    known[3] = True
    final = pictures.final_pixels(np.array([5, 16]), 4, known)
    first, second = (pixels_of(url) for url in pictures.growing(drawn, final))
    assert (first[..., 3] == 255).sum() == 5 + 4 and (first[3, :, 3] == 255).all()
    assert np.array_equal(first[0, :, :3], drawn[0, 0])
    assert np.array_equal(second[..., :3], drawn[1]) and (second[..., 3] == 255).all()
    assert pictures.final_pixels(np.array([5]), 4, None).sum() == 5


def test_known_pixels_are_those_of_the_same_place_at_another_resolution() -> None:
    known = np.array([[1, 0], [0, 1]], bool)
    assert np.array_equal(pictures.resized(known, 4), np.kron(known, np.ones((2, 2), bool)))
    assert np.array_equal(pictures.resized(pictures.resized(known, 6), 2), known)


def test_a_heat_map_is_the_brighter_the_more_a_pixel_surprises() -> None:
    nats = np.linspace(0, 8, 64).reshape(8, 8)
    shown = pictures.heat(nats, 8.0).astype(np.float64) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(shown.reshape(-1)) > 0).all()
    assert np.array_equal(pictures.heat(nats + 9, 8.0), np.broadcast_to(pictures.heat(nats, 8.0)[-1, -1], (8, 8, 3)))
