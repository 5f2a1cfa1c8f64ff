"""Decoding: every format and mode gives the upright picture on white, and anything else a reason for rejection."""

import io
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.images import decode as decode_module
from pipeline.images.decode import (
    Pictures,
    Recipe,
    centre_square,
    decode,
    decode_opened,
    decode_whole,
    random_boxes,
)
from pipeline.images.rejection import Reason, Rejection
from tests.pipeline.images import corpus

# What an EXIF orientation asks a viewer to do with the stored rows and columns, from the EXIF specification.
ORIENTATIONS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}
PHOTO = load_sample_images().images[0]  # uint8 [427, 640, 3]


def encoded(image: Image.Image | np.ndarray, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def outcome_of(data: bytes, resolution: int = 64, **limits: Any) -> Pictures | Rejection:
    return decode(data, Recipe(**{"resolution": resolution, "smallest_side": 1, "max_pixels": 10**6, **limits}), "key")


def pixels_of(data: bytes, resolution: int = 64) -> np.ndarray:
    outcome = outcome_of(data, resolution)
    assert isinstance(outcome, Pictures), outcome
    assert outcome.pixels.dtype == np.uint8
    assert outcome.pixels.shape == (1, resolution, resolution, 3)
    return outcome.pixels[0]


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.fixture(scope="module")
def photo(photos: np.ndarray) -> np.ndarray:
    return photos[25]  # uint8 [64, 64, 3], roofs: many edges and colours


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ],
)
def test_a_lossless_format_gives_the_very_pixels(photo: np.ndarray, file_format: str, options: dict[str, Any]) -> None:
    assert np.array_equal(pixels_of(encoded(photo, file_format, **options)), photo)


@pytest.mark.parametrize(("file_format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_a_lossy_format_gives_nearly_the_pixels(photo: np.ndarray, file_format: str, options: dict[str, Any]) -> None:
    assert mean_difference(pixels_of(encoded(photo, file_format, **options)), photo) < 4


def test_a_progressive_jpeg_equals_the_baseline_one(photo: np.ndarray) -> None:
    progressive = encoded(photo, "JPEG", progressive=True)
    assert progressive != encoded(photo, "JPEG")
    assert np.array_equal(pixels_of(progressive), pixels_of(encoded(photo, "JPEG")))


def test_a_cmyk_jpeg_is_not_inverted(photo: np.ndarray) -> None:
    cmyk = Image.fromarray(photo).convert("CMYK")
    assert mean_difference(pixels_of(encoded(cmyk, "JPEG", quality=95)), photo) < 4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_exif_orientation_is_applied(photo: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = ORIENTATIONS[orientation]
    assert np.array_equal(pixels_of(encoded(photo, "PNG", exif=exif)), turn(photo))
    assert np.array_equal(pixels_of(encoded(photo, "JPEG", exif=exif)), turn(pixels_of(encoded(photo, "JPEG"))))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_rounded_to_eight(photo: np.ndarray, file_format: str) -> None:
    grey = (photo[..., 0].astype(np.uint16) << 8) | photo[..., 1]
    expected = np.floor(grey * (255 / 65535) + 0.5).astype(np.uint8)
    assert np.array_equal(pixels_of(encoded(grey, file_format)), np.repeat(expected[..., None], 3, -1))


def test_dark_sixteen_bit_images_stay_dark() -> None:
    assert not pixels_of(encoded(np.full((64, 64), 100, np.uint16), "PNG")).any()


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_images_have_three_equal_channels(photo: np.ndarray, mode: str) -> None:
    grey = Image.fromarray(photo).convert(mode)
    expected = np.asarray(grey.convert("L"))
    assert np.array_equal(pixels_of(encoded(grey, "PNG")), np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_image_shows_its_colours(photo: np.ndarray, file_format: str) -> None:
    indexed = Image.fromarray(photo).quantize(32)
    palette_K3 = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
    assert np.array_equal(pixels_of(encoded(indexed, file_format)), palette_K3[np.asarray(indexed)])


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(photo: np.ndarray, file_format: str) -> None:
    indexed = Image.fromarray(photo).quantize(32)
    palette_K3 = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3).copy()
    palette_K3[5] = 255
    data = encoded(indexed, file_format, transparency=5)
    assert np.array_equal(pixels_of(data), palette_K3[np.asarray(indexed)])


def test_a_transparent_colour_is_white(photo: np.ndarray) -> None:
    key = photo[10, 10]
    data = encoded(photo, "PNG", transparency=tuple(int(value) for value in key))
    expected = np.where((photo == key).all(-1, keepdims=True), 255, photo)
    assert np.array_equal(pixels_of(data), expected)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(photo: np.ndarray, file_format: str) -> None:
    alpha = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    pixels = pixels_of(encoded(np.dstack([photo, alpha]), file_format, **options))
    share = alpha[..., None] / 255
    assert np.abs(pixels - (photo * share + 255 * (1 - share))).max() <= 1


def test_grey_with_alpha_is_laid_over_white(photo: np.ndarray) -> None:
    alpha = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    grey = Image.merge("LA", [Image.fromarray(photo[..., 0].copy()), Image.fromarray(alpha)])
    share = alpha / 255
    expected = photo[..., 0] * share + 255 * (1 - share)
    assert np.abs(pixels_of(encoded(grey, "PNG")) - expected[..., None]).max() <= 1


def test_an_animation_gives_its_first_frame(photo: np.ndarray) -> None:
    first, second = Image.fromarray(photo).quantize(32), Image.fromarray(255 - photo).quantize(32)
    animated = encoded(first, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(pixels_of(animated), pixels_of(encoded(first, "GIF")))


@settings(max_examples=60)
@given(
    resolution=st.sampled_from([4, 8, 16, 32]),
    factor=st.integers(1, 8),
    margin=st.integers(0, 40),
    upright=st.booleans(),
)
def test_the_centre_square_is_averaged_down(resolution: int, factor: int, margin: int, upright: bool) -> None:
    side = resolution * factor
    raw = PHOTO[:side, : side + 2 * margin]
    centre = raw[:, margin : margin + side].astype(float)
    mean = centre.reshape(resolution, factor, resolution, factor, 3).mean((1, 3))
    if upright:
        raw, mean = raw.transpose(1, 0, 2), mean.transpose(1, 0, 2)
    pixels = pixels_of(encoded(np.ascontiguousarray(raw), "PNG"), resolution)
    assert np.abs(pixels - mean).max() <= 1  # rounded once a direction


def test_the_size_of_the_raw_image_is_kept() -> None:
    outcome = outcome_of(encoded(PHOTO, "PNG"), 32)
    assert isinstance(outcome, Pictures)
    assert (outcome.width, outcome.height) == (640, 427)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_whole_picture_is_what_a_square_is_cut_from(photo: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(photo[:40], "JPEG", quality=95, exif=exif)
    whole = decode_whole(data, max_pixels=1 << 20)
    assert isinstance(whole, Image.Image) and whole.mode == "RGB"
    assert whole.size == ((photo.shape[1], 40) if orientation != 6 else (40, photo.shape[1]))
    assert np.array_equal(centre_square(whole, 16), pixels_of(data, 16))
    refused = decode_whole(data, max_pixels=100)
    assert isinstance(refused, Rejection) and refused.reason is Reason.DECOMPRESSION_BOMB
    assert isinstance(decode_whole(b"", 100), Rejection)


def huge_png() -> bytes:
    """A PNG of a few hundred bytes whose header claims 30,000 x 30,000 pixels."""
    data = bytearray(encoded(np.zeros((64, 64, 3), np.uint8), "PNG"))
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def broken_stream(data: bytes) -> bytes:
    """The PNG with the first bytes of its compressed pixels overwritten."""
    at = data.index(b"IDAT") + 4
    return data[:at] + bytes(8) + data[at + 8 :]


PNG = encoded(PHOTO[:64, :64], "PNG")
JPEG = encoded(PHOTO[:64, :64], "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.ZERO_BYTES),
        (b"<html>not found</html>", Reason.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", Reason.UNSUPPORTED),
        (JPEG[:8], Reason.TRUNCATED),
        (JPEG[: len(JPEG) // 2], Reason.TRUNCATED),
        (PNG[: len(PNG) // 2], Reason.TRUNCATED),
        (broken_stream(PNG), Reason.CORRUPT),
        (huge_png(), Reason.DECOMPRESSION_BOMB),
        (encoded(np.zeros((1001, 1000, 3), np.uint8), "PNG"), Reason.DECOMPRESSION_BOMB),
        (encoded(PHOTO[:15, :64], "PNG"), Reason.TOO_SMALL),
        (encoded(PHOTO[:64, :15], "PNG"), Reason.TOO_SMALL),
    ],
)
def test_what_is_no_usable_image_has_a_reason(data: bytes, reason: Reason) -> None:
    outcome = outcome_of(data, smallest_side=16)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == reason
    assert outcome.detail


def test_the_limits_themselves_are_accepted() -> None:
    data = encoded(PHOTO[:16, :64], "PNG")
    assert isinstance(outcome_of(data, 16, smallest_side=16, max_pixels=16 * 64), Pictures)
    assert isinstance(outcome_of(data, 16, smallest_side=17, max_pixels=16 * 64), Rejection)
    assert isinstance(outcome_of(data, 16, smallest_side=16, max_pixels=16 * 64 - 1), Rejection)


@settings(max_examples=150)
@given(
    data=st.sampled_from(
        [PNG, JPEG, encoded(PHOTO[:64, :64], "GIF"), encoded(PHOTO[:64, :64], "WEBP"), encoded(PHOTO[:64, :64], "BMP")]
    ),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20),
    kept=st.floats(0.01, 1),
)
def test_damage_never_raises(data: bytes, changes: list[tuple[float, int]], kept: float) -> None:
    damaged = bytearray(data[: int(len(data) * kept)])
    for place, value in changes:
        damaged[int(place**3 * len(damaged))] = value  # more often in the headers, at the front
    outcome = outcome_of(bytes(damaged), 16)
    assert isinstance(outcome, Rejection) or outcome.pixels.shape == (1, 16, 16, 3)


def test_random_crops_are_those_of_the_paper() -> None:
    recipe = Recipe(resolution=32, smallest_side=1, max_pixels=10**6, crops=400)
    for left, top, right, bottom in random_boxes((640, 427), recipe, "key"):
        assert right - left == pytest.approx(bottom - top)
        short_side_resized = 427 * 224 / (right - left)
        assert 256 - 1e-6 <= short_side_resized <= 384 + 1e-6
        assert left >= 0 and right <= 640 + 1e-9 and top >= 0 and bottom <= 427 + 1e-9
    sides = {round(427 * 224 / (right - left)) for left, _, right, _ in random_boxes((640, 427), recipe, "key")}
    assert min(sides) < 262 and max(sides) > 378


def test_random_crops_depend_on_the_key_and_the_seed_alone() -> None:
    data = encoded(PHOTO, "PNG")
    crops = {"resolution": 16, "smallest_side": 1, "max_pixels": 10**6, "crops": 3}
    first, again, other_key, other_seed = (
        decode(data, Recipe(**{**crops, "seed": seed}), key) for key, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
    )
    for outcome in (first, again, other_key, other_seed):
        assert isinstance(outcome, Pictures)
        assert outcome.pixels.shape == (3, 16, 16, 3)
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other_key.pixels)
    assert not np.array_equal(first.pixels, other_seed.pixels)
    assert not np.array_equal(first.pixels[0], first.pixels[1])
    # More crops of an image begin with the fewer.
    fewer = decode(data, Recipe(**{**crops, "crops": 2}), "a")
    assert isinstance(fewer, Pictures)
    assert np.array_equal(first.pixels[:2], fewer.pixels)


def test_a_crop_shows_the_square_of_its_box() -> None:
    recipe = Recipe(resolution=32, smallest_side=1, max_pixels=10**6, crops=1)
    ((left, top, right, bottom),) = random_boxes((640, 427), recipe, "key")
    cut = PHOTO[round(top) : round(bottom), round(left) : round(right)]
    crop = decode(encoded(PHOTO, "PNG"), recipe, "key")
    assert isinstance(crop, Pictures)
    assert mean_difference(crop.pixels[0], pixels_of(encoded(cut, "PNG"), 32)) < 2


@pytest.mark.parametrize("size", [(640, 427), (427, 640)])
def test_fast_decoding_is_close_to_exact(size: tuple[int, int]) -> None:
    photo = PHOTO if size[0] == 640 else np.ascontiguousarray(PHOTO.transpose(1, 0, 2))
    data = encoded(photo, "JPEG", quality=90)
    exact, fast = outcome_of(data, 32), outcome_of(data, 32, fast=True)
    assert isinstance(exact, Pictures) and isinstance(fast, Pictures)
    assert (fast.width, fast.height) == (exact.width, exact.height) == size
    assert 0 < mean_difference(exact.pixels, fast.pixels) < 2


def test_fast_decoding_changes_nothing_where_the_image_is_small_or_no_jpeg() -> None:
    small = encoded(PHOTO[:60, :60], "JPEG", quality=90)
    for data, resolution in ((small, 32), (encoded(PHOTO, "PNG"), 32)):
        exact, fast = outcome_of(data, resolution), outcome_of(data, resolution, fast=True)
        assert isinstance(exact, Pictures) and isinstance(fast, Pictures)
        assert np.array_equal(exact.pixels, fast.pixels)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "GIF", "BMP"])
def test_more_pixels_than_pillow_allows_are_decoded_when_the_config_says_so(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(decode_module, "_PILLOWS_LIMIT", 100)
    data = encoded(PHOTO[:16, :16], file_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(outcome_of(data, max_pixels=256), Pictures)
        assert isinstance(outcome_of(data, max_pixels=255), Rejection)


def test_an_image_that_pillow_holds_gives_what_its_file_gives() -> None:
    recipe = Recipe(resolution=16, smallest_side=1, max_pixels=10**6)
    files = corpus.corpus()
    for name in ("JPEG turned 6", "PNG RGB of 16 bits with a transparent colour", "GIF transparent", "TIFF LAB"):
        opened, read = decode_opened(Image.open(io.BytesIO(files[name])), recipe), decode(files[name], recipe)
        assert isinstance(opened, Pictures) and isinstance(read, Pictures)
        assert np.array_equal(opened.pixels, read.pixels)
    plain = Image.new("RGB", (16, 16), (90, 120, 60))
    for mode in ("YCbCr", "HSV", "LAB", "CMYK", "La", "RGBa", "PA"):
        image = plain.quantize(4) if mode == "PA" else plain.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB"))
        opened = decode_opened(image.convert(mode), recipe)
        assert isinstance(opened, Pictures)
        expected = plain.convert("L").convert("RGB") if mode == "La" else plain
        assert mean_difference(opened.pixels[0], np.asarray(expected)) <= 2, mode
    cut = decode_opened(Image.open(io.BytesIO(PNG[: len(PNG) // 2])), recipe)
    assert isinstance(cut, Rejection) and cut.reason == Reason.TRUNCATED
