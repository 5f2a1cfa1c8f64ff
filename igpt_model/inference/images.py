"""Converts user input (arrays, image files, or tables of these) to images at a model's resolution."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image

from pipeline.errors import IgptError
from pipeline.images.decode import Pictures, Recipe, decode, decode_opened
from pipeline.images.rejection import Reason, Rejection

COLUMN = "image"
_BYTES = "bytes"  # of {"bytes": ..., "path": ...}, as Hugging Face's datasets store images
_MAX_PIXELS = 80_000_000
_KINDS = (
    "give uint8 [N, H, W, 3], or one image [H, W, 3] or [H, W] (1 channel is grey, 4 are RGBA; floats from 0 to 1: "
    "times 255), a list of such images, of Pillow's, or of PNG or JPEG files as bytes (in JSON: as base64), or a table "
    f"with one of these in its column {COLUMN!r}"
)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name by the number of channels
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


def as_pandas(images: Any) -> Any:
    """Tables and columns of pyarrow, Polars and Hugging Face's datasets as those of pandas; all else unchanged.

    Raises IgptError when they cannot be converted.
    """
    if not hasattr(images, "to_pandas"):
        return images
    try:
        return images.to_pandas()
    except Exception as error:
        kind = type(images).__name__
        raise IgptError(
            f"images are a {kind} that does not become a pandas table ({type(error).__name__}): {_KINDS}"
        ) from error


def index_of(images: Any) -> Any:
    """The index of images in a table or a series of pandas; None for all else."""
    return images.index if _is_of_pandas(images) else None


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


def _is_of_pandas(images: Any) -> bool:
    return hasattr(images, "iloc")


def _listed(images: Any) -> Sequence[Any]:
    """The images as a sequence, from any supported container."""
    images = as_pandas(images)
    if isinstance(images, bytes | bytearray | memoryview | str | Image.Image):
        return [images]
    if _is_of_pandas(images):
        return list(_column(images) if hasattr(images, "columns") else images)
    if isinstance(images, Mapping):  # from MLflow's server
        return _listed(_value(images, "the table"))
    if isinstance(images, list | tuple):
        return _listed_numbers(images)
    if isinstance(images, torch.Tensor):
        return _listed_array(images, str(images.dtype))
    if hasattr(images, "__array__"):
        array = np.asarray(images)
        if array.dtype.kind not in "OSU":
            return _listed_array(array, str(array.dtype))
        return list(array) if array.ndim else _listed(array.item())
    raise IgptError(f"images are {type(images).__name__}: {_KINDS}")


def _column(table: Any) -> Any:
    """The column of a pandas table that holds the images."""
    names = list(table.columns)
    if COLUMN not in names:
        raise IgptError(f"the table has the columns {_shortened(names)}: {_KINDS}")
    if names.count(COLUMN) > 1:
        raise IgptError(f"the table has {names.count(COLUMN)} columns {COLUMN!r}: it must have one")
    return table[COLUMN]


def _value(mapping: Mapping[Any, Any], name: str) -> Any:
    """The image or images in a mapping: {"image": ...}, or {"bytes": ..., "path": ...}."""
    if COLUMN in mapping:
        return mapping[COLUMN]
    if _BYTES not in mapping:
        raise IgptError(f"{name} has the columns {_shortened(list(mapping))}: {_KINDS}")
    data = _scalar(mapping[_BYTES])
    if data is None:
        raise IgptError(f"{name} has a path and no bytes, and paths are not opened: read the file, and give its bytes")
    return data


def _shortened(names: list[Any], most: int = 10) -> str:
    return str([str(name)[:50] for name in names[:most]] + ["..."] * (len(names) > most))


def _scalar(value: Any) -> Any:
    """MLflow's server makes arrays without dimensions of the values in a mapping."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _listed_numbers(images: Sequence[Any]) -> Sequence[Any]:
    """A list of images; or nested lists of numbers, which hold one image or several of one size."""
    if not len(images) or not isinstance(images[0], list | tuple):
        return images
    try:
        array = np.asarray(images)
    except ValueError:  # images of different sizes
        return images
    return _listed_array(array, str(array.dtype)) if array.dtype.kind in "uifb" else images


def _listed_array(array: Any, dtype: str) -> Sequence[Any]:
    """The images of an array or a tensor of numbers."""
    if array.ndim == 4:
        return list(array)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _MODES):
        return [array]
    if array.ndim == 1 and not len(array):
        return []
    advice = ""
    if array.ndim == 3:
        advice = "several grey images are [N, H, W, 1], one image with its channels first is given in a list; or "
    raise IgptError(f"images have shape {tuple(array.shape)}, {dtype}: {advice}{_KINDS}")


def _picture(image: Any, name: str, side: int) -> np.ndarray:
    image = _scalar(image)
    if isinstance(image, Mapping):
        image = _scalar(_value(image, name))
    if image is None or (isinstance(image, float) and np.isnan(image)):
        raise IgptError(f"{name} is missing (null): {_KINDS}")
    if isinstance(image, str):
        image = _file_of_text(image, name)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_picture(bytes(image), name, side)
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_array(image, name))
    return _pixels(decode_opened(image, _recipe(side)), name)


def _file_of_text(text: str, name: str) -> bytes:
    """The bytes of base64, also in lines, with the characters for URLs, without padding, or in a data URL."""
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise IgptError(f"{name} is a data URL that is not base64: {_KINDS}")
        text = unquote(text)
    text = "".join(text.split()).translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise IgptError(f"{name} is a text that is not base64 (paths and URLs are not opened): {_KINDS}") from None


def _array(image: Any, name: str) -> np.ndarray:
    """An image of numbers as uint8 [H, W], [H, W, 3] or [H, W, 4]."""
    is_tensor = isinstance(image, torch.Tensor)
    if is_tensor:
        image = image.detach().cpu()
        if image.dtype == torch.bfloat16:  # which NumPy does not have
            image = image.float()
    try:
        array = np.asarray(_plain(image))
    except (TypeError, ValueError):  # rows of different lengths, a tensor that NumPy cannot hold
        raise IgptError(f"{name} is not a rectangle of pixels: {_KINDS}") from None
    shape = array.shape
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "ui":
        raise IgptError(f"{name} has shape {shape}, {array.dtype}: {_KINDS}")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):  # integers from JSON are int64
        raise IgptError(f"{name} has values from {array.min()} to {array.max()}: they must be 0 to 255")
    if array.ndim == 2:
        if shape[1] in (3, 4):
            raise IgptError(f"{name} has shape {shape}, which may be one row of pixels: give [H, W, 1] or [H, W, 3]")
        return np.ascontiguousarray(array, np.uint8)
    first, last = shape[0] in _MODES, shape[2] in _MODES
    if not (first or last):
        raise IgptError(f"{name} has shape {shape}, {array.dtype}: {_KINDS}")
    if is_tensor and first and last:
        raise IgptError(f"{name} is a tensor of shape {shape}, whose channels may be first or last: give an array")
    array = array if last else np.moveaxis(array, 0, 2)
    return np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array, np.uint8)


def _plain(image: Any) -> Any:
    """Arrays within arrays, as tables hold nested lists, as nested lists."""
    if isinstance(image, np.ndarray) and image.dtype.kind == "O":
        return [_plain(part) for part in image]
    return image
