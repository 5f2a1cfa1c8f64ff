"""Converts user input (arrays, image files, or tables of these) to images at a model's resolution."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import IgptError
from pipeline.images.decode import Pictures, Recipe, centre_square, decode, decode_opened
from pipeline.images.rejection import Reason, Rejection

COLUMN = "image"
_MAX_PIXELS = 80_000_000
_KINDS = (
    "give uint8 [N, H, W, 3], a list of such images, of Pillow's, or of PNG or JPEG files as bytes (in JSON: as "
    f"base64), or a table with one of these in its column {COLUMN!r}"
)
_ADVICE = {
    Reason.UNSUPPORTED: "convert it to JPEG or PNG",
    Reason.DECOMPRESSION_BOMB: "give a smaller image",
    Reason.OUT_OF_MEMORY: "give a smaller image",
}


def to_pictures(images: Any, side: int) -> np.ndarray:
    """Convert images of any size to uint8 [N, side, side, 3]: the centre square, averaged down.

    Raises IgptError naming the first invalid image.
    """
    listed = _listed(images)
    if not len(listed):
        raise IgptError(f"there are no images: {_KINDS}")
    return np.stack([_picture(image, f"image {number}", side) for number, image in enumerate(listed)])


def decode_picture(data: bytes, name: str, side: int) -> np.ndarray:
    """Decode an image file to uint8 [side, side, 3]. Raises IgptError with its name when it is not an image."""
    return _pixels(decode(data, _recipe(side), name), name)


def _recipe(side: int) -> Recipe:
    return Recipe(resolution=side, smallest_side=1, max_pixels=_MAX_PIXELS)


def _pixels(decoded: Pictures | Rejection, name: str) -> np.ndarray:
    """The centre crop, uint8 [side, side, 3]. Raises IgptError for an image that was rejected."""
    if isinstance(decoded, Rejection):
        advice = _ADVICE.get(decoded.reason, "give a whole image file, such as a JPEG or PNG")
        raise IgptError(f"{name}: {decoded.reason.value} ({decoded.detail}); {advice}")
    return decoded.pixels[0]


def _listed(images: Any) -> Sequence[Any]:
    """The images as a sequence, from any supported container."""
    if isinstance(images, bytes | bytearray | str):
        return [images]
    columns = getattr(images, "columns", images.keys() if isinstance(images, Mapping) else None)
    if columns is not None:  # a pandas table, or a mapping from MLflow's server
        if COLUMN not in columns:
            raise IgptError(f"the table has the columns {list(columns)}: {_KINDS}")
        return list(images[COLUMN])
    if isinstance(images, np.ndarray):
        if images.ndim != 4 and images.dtype.kind not in "OSU":
            raise IgptError(f"images have shape {images.shape}, {images.dtype}: {_KINDS}")
        return images.tolist() if images.dtype.kind in "OSU" and images.ndim == 1 else list(images)
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, list | tuple):
        return images
    raise IgptError(f"images are {type(images).__name__}: {_KINDS}")


def _picture(image: Any, name: str, side: int) -> np.ndarray:
    if isinstance(image, str):
        try:
            image = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise IgptError(f"{name} is a text that is not base64: {_KINDS}") from None
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_picture(bytes(image), name, side)
    if isinstance(image, Image.Image):
        return _pixels(decode_opened(image, _recipe(side)), name)
    try:
        array = np.asarray(image)
    except ValueError:  # rows of different lengths
        raise IgptError(f"{name} is not a rectangle of pixels: {_KINDS}") from None
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or array.dtype.kind not in "ui":
        raise IgptError(f"{name} has shape {array.shape}, {array.dtype}: {_KINDS}")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):  # integers from JSON are int64
        raise IgptError(f"{name} has values from {array.min()} to {array.max()}: they must be 0 to 255")
    return centre_square(Image.fromarray(np.ascontiguousarray(array, np.uint8)), side)
