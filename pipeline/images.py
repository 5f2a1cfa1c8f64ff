"""Encoded image bytes to a square uint8 picture of the dataset's resolution, or a Rejection with a reason. Pure."""

import io
import struct
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Read by name, so that an attacker's file cannot reach the decoders of exotic formats (PostScript, FPX, ...).
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


class Reason(StrEnum):
    """Why an image is not in the dataset."""

    ZERO_BYTES = "zero_bytes"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    DECOMPRESSION_BOMB = "decompression_bomb"
    TOO_SMALL = "too_small"
    UNREADABLE = "unreadable_object"


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An image that was refused, the reason, and what was seen."""

    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded image at the dataset's resolution, with the size that it had."""

    pixels: np.ndarray  # uint8 [resolution, resolution, 3]
    width: int
    height: int


def decode(data: bytes, *, resolution: int, smallest_side: int, max_pixels: int) -> Picture | Rejection:
    """Decode, turn upright, put on white, crop the centre square and average it down to resolution x resolution.

    Follows section 3.1 of Chen et al. 2020 without its random crops. Each output pixel is the mean of the source pixels
    whose centres lie in its area (Pillow's box filter), computed on the gamma-encoded values as OpenAI's data was.
    """
    if not data:
        return Rejection(reason=Reason.ZERO_BYTES, detail="the object is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return Rejection(
                    reason=Reason.DECOMPRESSION_BOMB, detail=f"{width}x{height} is over {max_pixels} pixels"
                )
            if min(width, height) < smallest_side:
                return Rejection(
                    reason=Reason.TOO_SMALL, detail=f"{width}x{height}, short side under {smallest_side} pixels"
                )
            upright = ImageOps.exif_transpose(image)
            rgb = _to_rgb(upright)
    except UnidentifiedImageError:
        return Rejection(reason=Reason.NOT_AN_IMAGE, detail=f"starts with {data[:8].hex()}")
    except Image.DecompressionBombError as error:
        return Rejection(reason=Reason.DECOMPRESSION_BOMB, detail=str(error))
    except (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, OverflowError) as error:
        # Pillow reports a damaged file with any of these, depending on the format and the place of the damage.
        detail = str(error) or type(error).__name__
        cut = "truncated" in detail.lower() or isinstance(error, EOFError)
        return Rejection(reason=Reason.TRUNCATED if cut else Reason.CORRUPT, detail=detail)
    return Picture(pixels=centre_square(rgb, resolution), width=width, height=height)


def centre_square(rgb: Image.Image, resolution: int) -> np.ndarray:
    """Crop the centre square of an RGB image and average it down; uint8 [resolution, resolution, 3]."""
    side = min(rgb.size)
    left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(rgb.resize((resolution, resolution), Image.Resampling.BOX, box=box))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: alpha over white, 16 bits to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 255 / 65535 if values.max(initial=0) > 255 or image.mode != "F" else 1.0
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8), "L").convert("RGB")
    if image.mode in {"LA", "PA", "RGBA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
