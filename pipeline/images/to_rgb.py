"""Convert any image of Pillow's to RGB: transparency over white, and grey tones of any number type to 8 bits. Pure.

docs/data.md has the rule for each kind of number.
"""

import io

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

_WHITE = (255, 255, 255)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
# The ranges that pictures of 32-bit integers and floats are written in; floats first in 0 to 1.
_INTEGER_RANGES = (255, 65535)
_FLOAT_RANGES = (1, *_INTEGER_RANGES)
# A resampled picture overshoots its range at edges, by a fourth of it at most.
_OVERSHOOT = 1 / 4
# A picture whose brightest tone is a smaller share of a range was not written in that range, the first one apart.
_SMALLEST_SHARE = 1 / 4


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB. Raises what Pillow raises for a damaged one."""
    if "transparency" not in image.info or (transparent_HW := _transparent_pixels(image)) is None:
        return _convert(image, without_key=False)
    rgb = _convert(image, without_key=True).copy()
    rgb.paste(_WHITE, mask=Image.fromarray(transparent_HW))
    return rgb


def _convert(image: Image.Image, *, without_key: bool) -> Image.Image:
    """`without_key`: as if no colour were transparent."""
    mode = image.mode
    if mode == "RGB" and (without_key or "transparency" not in image.info):
        image.load()
        return image  # Pillow's convert would copy it
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_grey(image)).convert("RGB")
    image.load()
    if mode == "La":
        image = image.convert("LA")  # Pillow has no direct way to RGBA
    if image.has_transparency_data and not without_key:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (*_WHITE, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> np.ndarray:
    """The tones of an image of one channel of 16-bit or 32-bit numbers, uint8 [H, W].

    What is no number counts as transparent: white.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(_BITS, (16,))[0]
    stored = np.asarray(image)
    if image.mode == "I" and bits == 32 and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        stored = stored.view(np.uint32)  # Pillow has signed ones only
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = stored.astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        low, high = 0.0, float(4095 if bits == 12 else 65535)
    else:
        low, high = _range_of(values, _FLOAT_RANGES if image.mode == "F" else _INTEGER_RANGES)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow minds for 8 bits and fewer
        low, high = high, low
    # In place: a large picture takes eight bytes a pixel here.
    values -= low
    values *= 255 / (high - low)
    values += 0.5
    values[np.isnan(values)] = 255
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _range_of(values: np.ndarray, ranges: tuple[int, ...]) -> tuple[float, float]:
    """The values of black and white in a picture whose format does not give them."""
    finite = np.isfinite(values)
    low = float(values.min(where=finite, initial=np.inf))
    high = float(values.max(where=finite, initial=-np.inf))
    slack = _OVERSHOOT if ranges is _FLOAT_RANGES else 0
    for white in ranges:
        is_used = white == ranges[0] or high > white * _SMALLEST_SHARE
        if is_used and -slack * white <= low and high <= white * (1 + slack):
            return 0.0, float(white)
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _transparent_pixels(image: Image.Image) -> np.ndarray | None:
    """Whether each pixel of a PNG is of its transparent colour, bool [H, W]; None where Pillow itself finds out.

    The transparent colour of a PNG is given in the bits of the file. Pillow compares it with pixels of 8 bits.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile or image.fp is None:
        return None
    key, stored = image.info["transparency"], image.tile[0].args
    if stored in {"L;2", "L;4"}:
        return np.asarray(image) == ((key & 3) * 85 if stored == "L;2" else (key & 15) * 17)
    if stored == "I;16B":
        return np.asarray(image) == key
    if stored != "RGB;16B":
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    low_bytes = PngImagePlugin.PngImageFile(io.BytesIO(image.fp.read()))
    image.fp.seek(place)
    low_bytes.tile = [low_bytes.tile[0]._replace(args="RGB;16L")]  # takes the second byte where RGB;16B takes the first
    values_HW3 = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low_bytes)
    return (values_HW3 == np.array(key, np.uint16)).all(-1)
