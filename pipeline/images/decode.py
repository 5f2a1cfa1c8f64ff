"""Decode image bytes to small square uint8 pictures, or to a Rejection with a reason. Pure.

Section 3.1 of Chen et al. 2020: the centre square, or random crops of it, averaged down to the dataset's resolution.
"""

import hashlib
import io
import struct
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Raise it when an image is decoded to other pixels than before, or accepted where it was refused.
DECODING_RULE = 1
# Named one by one, so that a malicious file cannot reach the decoders of exotic formats (PostScript, FPX, ...).
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})

# The paper resizes the short side to a random size in this range and takes a random square of 224 pixels.
_SHORT_SIDES = (256, 384)
_CROP = 224
# A fast JPEG decoder keeps at least this many decoded pixels per output pixel, along each side.
_FAST_OVERSAMPLING = 2


class Reason(StrEnum):
    """Why an image is not in the dataset."""

    ZERO_BYTES = "zero_bytes"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    DECOMPRESSION_BOMB = "decompression_bomb"
    TOO_SMALL = "too_small"
    OUT_OF_MEMORY = "out_of_memory"
    UNREADABLE = "unreadable_object"
    REPLACED = "replaced_while_read"
    TIME_OUT = "time_out"
    DECODER_CRASH = "decoder_crash"
    DUPLICATE = "duplicate"


# These depend on circumstances rather than the image, which may be accepted the next time.
TRANSIENT = frozenset({Reason.OUT_OF_MEMORY, Reason.UNREADABLE, Reason.REPLACED, Reason.TIME_OUT, Reason.DECODER_CRASH})
OUT_OF_MEMORY_DETAIL = "decoding needs more memory than there is"


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
class Rejection:
    """Why an image was rejected, and the observation behind it."""

    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The crops of one image at the dataset's resolution, and the size of the image."""

    pixels: np.ndarray  # uint8 [crops, resolution, resolution, 3]; the centre square counts as one crop
    width: int
    height: int


def has_image_extension(name: str) -> bool:
    """Whether a file is an image, by its extension."""
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def decode(data: bytes, recipe: Recipe, key: str = "") -> Pictures | Rejection:
    """Decode, rotate by the EXIF orientation, blend with white, crop, and average down to resolution x resolution.

    Each output pixel is the mean of the source pixels whose centres lie in its area (Pillow's box filter), computed on
    gamma-encoded values, as for OpenAI's data. Random crops depend only on the seed and `key`.
    """
    if not data:
        return Rejection(reason=Reason.ZERO_BYTES, detail="the object is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > recipe.max_pixels:
                return Rejection(
                    reason=Reason.DECOMPRESSION_BOMB, detail=f"{width}x{height} is over {recipe.max_pixels} pixels"
                )
            if min(width, height) < recipe.smallest_side:
                return Rejection(
                    reason=Reason.TOO_SMALL, detail=f"{width}x{height}, short side under {recipe.smallest_side} pixels"
                )
            if recipe.fast:
                # The smallest random crop decides how much detail is needed.
                side = min(width, height) * (_CROP / _SHORT_SIDES[1] if recipe.crops else 1)
                scale = _FAST_OVERSAMPLING * recipe.resolution / side
                image.draft("RGB", (max(1, round(width * scale)), max(1, round(height * scale))))
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
            boxes = [_centre_box(rgb.size)] if not recipe.crops else random_boxes(rgb.size, recipe, key)
            pictures = [_shrink(rgb, box, recipe.resolution) for box in boxes]
    except UnidentifiedImageError:
        return Rejection(reason=Reason.NOT_AN_IMAGE, detail=f"starts with {data[:8].hex()}")
    except Image.DecompressionBombError as error:
        return Rejection(reason=Reason.DECOMPRESSION_BOMB, detail=str(error))
    except MemoryError:
        return Rejection(reason=Reason.OUT_OF_MEMORY, detail=OUT_OF_MEMORY_DETAIL)
    except (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, OverflowError) as error:
        # Pillow reports a damaged file with any of these, depending on the format and on where the damage is.
        detail = str(error) or type(error).__name__
        cut = "truncated" in detail.lower() or isinstance(error, EOFError)
        return Rejection(reason=Reason.TRUNCATED if cut else Reason.CORRUPT, detail=detail)
    pixels = pictures[0][None] if len(pictures) == 1 else np.stack(pictures)
    return Pictures(pixels=pixels, width=width, height=height)


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


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: alpha over white, 16 bits to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image  # Pillow's convert would copy it
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 255 / 65535 if values.max(initial=0) > 255 or image.mode != "F" else 1.0
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8), "L").convert("RGB")
    if image.mode in {"LA", "PA", "RGBA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
