"""Decode image bytes to small square uint8 pictures, or to a Rejection with a reason. Pure.

Section 3.1 of Chen et al. 2020: the centre square, or random crops of it, averaged down to the dataset's resolution.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

from pipeline.images import formats, icons, metadata
from pipeline.images.rejection import Reason, RefusedError, Rejection, rejection_of
from pipeline.images.to_rgb import to_rgb

DECODING_RULE = 2
"""The number of the rule by which an image's bytes become pixels: raised whenever some image would become others.

1: until November 2026. 2: more formats, tones of 16-bit, 32-bit and float pictures, and transparent colours in other
bits than 8, as docs/data.md tables them.
"""

Decoded = TypeVar("Decoded")

# The paper resizes the short side to a random size in this range and takes a random square of 224 pixels.
_SHORT_SIDES = (256, 384)
_CROP = 224
# A fast JPEG decoder keeps at least this many decoded pixels per output pixel, along each side.
_FAST_OVERSAMPLING = 2
# What Pillow warns of by itself, in pixels; it refuses twice as many.
_PILLOWS_LIMIT = 1024**3 // 4 // 3
# How a picture is turned upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an image is decoded and downsampled."""

    resolution: int
    smallest_side: int
    """Smallest accepted short side, in pixels."""
    max_pixels: int
    """Largest accepted image, in pixels."""
    crops: int = 0
    """Number of random crops of an image; 0: its centre square."""
    fast: bool = False
    """Whether JPEGs are decoded at a fraction of their size (DCT scaling) where that is large enough."""
    seed: int = 0
    """Seed of the random crops."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The crops of one image at the dataset's resolution, and the size of the image."""

    pixels: np.ndarray  # uint8 [crops, resolution, resolution, 3]; the centre square counts as one crop
    width: int
    height: int


def decode(data: bytes, recipe: Recipe, key: str = "") -> Pictures | Rejection:
    """Decode, rotate by the EXIF orientation, blend with white, crop, and average down to resolution x resolution.

    Each output pixel is the mean of the source pixels whose centres lie in its area (Pillow's box filter), computed on
    gamma-encoded values, as for OpenAI's data. Random crops depend only on the seed and `key`. Raises nothing: whatever
    Pillow raises becomes a Rejection.
    """
    return _attempted(data, lambda file: _pictures(_open(file, recipe.max_pixels), recipe, key))


def decode_whole(data: bytes, max_pixels: int) -> Image.Image | Rejection:
    """The whole image in RGB, upright, by the rules of `decode`; for those who choose a square themselves."""

    def upright(file: bytes) -> Image.Image:
        image = _open(file, max_pixels)
        return _upright(to_rgb(image), image)

    return _attempted(data, upright)


def decode_opened(image: Image.Image, recipe: Recipe, key: str = "") -> Pictures | Rejection:
    """As `decode`, of an image that Pillow holds, whose pixels may not be read yet."""
    try:
        _check_size(image.size, recipe.max_pixels)
        return _pictures(image, recipe, key)
    except Exception as error:  # noqa: BLE001 (of any kind: see rejection_of)
        return rejection_of(error)


def _attempted(data: bytes, decoded: Callable[[bytes], Decoded]) -> Decoded | Rejection:
    """What `decoded` makes of a file, or of the file without its metadata; whatever it raises becomes a Rejection."""
    if not data:
        return Rejection(reason=Reason.ZERO_BYTES, detail="the object is empty")
    try:
        return decoded(data)
    except Exception as error:  # noqa: BLE001 (of any kind: see rejection_of)
        rejection = rejection_of(error, data)
        if rejection.reason in {Reason.DECOMPRESSION_BOMB, Reason.TOO_SMALL, Reason.OUT_OF_MEMORY}:
            return rejection
    stripped = metadata.without_metadata(data)
    if stripped is None:
        return rejection
    try:
        return decoded(stripped)
    except Exception as error:  # noqa: BLE001 (of any kind)
        return rejection_of(error, stripped)


def _pictures(image: Image.Image, recipe: Recipe, key: str) -> Pictures:
    """The crops of an image. Raises RefusedError for one that is too small, and what Pillow raises for damage."""
    width, height = image.size
    if min(width, height) < recipe.smallest_side:
        raise RefusedError(Reason.TOO_SMALL, f"{width}x{height}, short side under {recipe.smallest_side} pixels")
    if recipe.fast:
        # The smallest random crop decides how much detail is needed.
        side = min(width, height) * (_CROP / _SHORT_SIDES[1] if recipe.crops else 1)
        scale = _FAST_OVERSAMPLING * recipe.resolution / side
        image.draft("RGB", (max(1, round(width * scale)), max(1, round(height * scale))))
    rgb = _upright(to_rgb(image), image)
    boxes = [_centre_box(rgb.size)] if not recipe.crops else random_boxes(rgb.size, recipe, key)
    pictures = [_shrink(rgb, box, recipe.resolution) for box in boxes]
    pixels = pictures[0][None] if len(pictures) == 1 else np.stack(pictures)
    return Pictures(pixels=pixels, width=width, height=height)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header of an image of one of formats.FORMATS.

    Raises RefusedError for other data and for more pixels than `max_pixels`, and what Pillow raises for a damaged one.
    """
    if max_pixels > _PILLOWS_LIMIT and Image.MAX_IMAGE_PIXELS is not None:
        # Some decoders check the limit of the process once more.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    name = formats.format_of(data)
    if name is None:
        if unread := formats.unread_format_of(data):
            raise RefusedError(Reason.UNSUPPORTED, f"{unread} is not read")
        raise RefusedError(Reason.NOT_AN_IMAGE, formats.describe(data))
    if name in {"ICO", "ICNS"} and (within := icons.picture_within(name, data, max_pixels)) is not None:
        return _open(within, max_pixels)
    image = _Jpeg(io.BytesIO(data)) if name == "JPEG" else _plugin(name)(io.BytesIO(data), "")
    _check_size(image.size, max_pixels)
    return image


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG as its pixels and orientation go, also the first picture of an MPO, whose index may be damaged."""

    def _read_dpi_from_exif(self) -> None:
        """The resolution in print is not needed, and reading it raises for some EXIF."""


def _plugin(name: str) -> Callable[..., Image.Image]:
    """Pillow's class for a format. Image.open hides why a file of a known signature cannot be opened."""
    if name not in Image.OPEN:
        Image.preinit()
    if name not in Image.OPEN:
        Image.init()
    if name not in Image.OPEN:
        raise RefusedError(Reason.UNSUPPORTED, f"this build of Pillow does not read {name}")
    return Image.OPEN[name][0]


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise RefusedError(Reason.DECOMPRESSION_BOMB, f"{width}x{height} is over {max_pixels} pixels")


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Turn the pixels of an image by its EXIF orientation."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 (EXIF of any kind of damage: the picture as it is stored)
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


Box = tuple[float, float, float, float]


def _centre_box(size: tuple[int, int]) -> Box:
    side = min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return (left, top, left + side, top + side)


def random_boxes(size: tuple[int, int], recipe: Recipe, key: str) -> list[Box]:
    """The squares of an image that its random crops show: left, top, right, bottom, in pixels of the image.

    The paper resizes the short side to a random size of 256 to 384 and cuts out a square of 224 at a random position.
    Here the two are one step, so that pixels are averaged once.
    """
    width, height = size
    boxes = []
    for crop in range(recipe.crops):
        draw = hashlib.sha256(f"crop {recipe.seed} {key} {crop}".encode()).digest()
        u, v, w = (int.from_bytes(draw[8 * i : 8 * i + 8], "little") / 2**64 for i in range(3))
        short = _SHORT_SIDES[0] + int(u * (_SHORT_SIDES[1] - _SHORT_SIDES[0] + 1))
        side = min(width, height) * _CROP / short
        left, top = v * (width - side), w * (height - side)
        # Rounding must not extend the box beyond the edge.
        boxes.append((left, top, min(left + side, width), min(top + side, height)))
    return boxes


def centre_square(rgb: Image.Image, resolution: int) -> np.ndarray:
    """Crop the centre square of an RGB image and average it down; uint8 [resolution, resolution, 3]."""
    return _shrink(rgb, _centre_box(rgb.size), resolution)


def _shrink(rgb: Image.Image, box: Box, resolution: int) -> np.ndarray:
    return np.asarray(rgb.resize((resolution, resolution), Image.Resampling.BOX, box=box))
