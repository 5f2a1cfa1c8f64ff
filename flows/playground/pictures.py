"""Pictures for a page: a chosen square, what a model sees of it, growing pictures, heat maps. Pure."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from flows.playground.limits import Limits
from pipeline.errors import IgptError
from pipeline.images.decode import centre_square, decode_whole
from pipeline.images.rejection import Rejection

# From nearly black over violet and orange to light yellow: by brightness alone it can be read too.
_HEAT = np.array(
    [[3, 2, 18], [58, 15, 110], [128, 37, 130], [200, 62, 115], [247, 112, 92], [254, 185, 120], [252, 253, 191]],
    np.float64,
)
_PREVIEW_SIDE = 720


@dataclass(frozen=True, kw_only=True)
class Square:
    """A square of a picture, in parts of its width and height."""

    left: float
    top: float
    side: float
    """In parts of the shorter side."""

    @classmethod
    def centre(cls, width: int, height: int) -> "Square":
        """The largest square in the middle, as datasets are made of."""
        short = min(width, height)
        return cls(left=(width - short) / 2 / width, top=(height - short) / 2 / height, side=1.0)

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels of a picture; whatever a browser sent, within it and not empty."""
        left, top, part = (max(0.0, min(1.0, value)) for value in (self.left, self.top, self.side))
        side = max(1, round(part * min(width, height)))
        left, top = min(width - side, round(left * width)), min(height - side, round(top * height))
        return left, top, left + side, top + side


def opened(data: bytes, limits: Limits) -> Image.Image:
    """A file as an upright picture in RGB, averaged down to `kept_pixels`.

    Raises IgptError with the reason for what is no picture, or too large.
    """
    if len(data) > limits.file_bytes:
        raise IgptError(f"the file has {len(data):,} bytes: {limits.file_bytes:,} are the most")
    decoded = decode_whole(data, limits.pixels)
    if isinstance(decoded, Rejection):
        raise IgptError(f"{decoded.reason.value.replace('_', ' ')} ({decoded.detail}): give another picture")
    factor = int(np.ceil((decoded.width * decoded.height / limits.kept_pixels) ** 0.5))
    return decoded if factor <= 1 else decoded.reduce(factor)


def cropped(picture: Image.Image, square: Square, side: int) -> np.ndarray:
    """A square of a picture at a model's resolution, uint8 [side, side, 3], averaged as datasets are."""
    return centre_square(picture.crop(square.box(*picture.size)), side)


def as_seen(picture_RR3: np.ndarray, palette_K3: np.ndarray) -> np.ndarray:
    """A picture in a palette's nearest colours: uint8 [R, R, 3] and [K, 3] to [R, R, 3]."""
    pixels = picture_RR3.reshape(-1, 1, 3).astype(np.int64)
    nearest = ((pixels - palette_K3.astype(np.int64)) ** 2).sum(-1).argmin(1)
    return palette_K3[nearest].reshape(picture_RR3.shape)


def resized(known_RR: np.ndarray, side: int) -> np.ndarray:
    """Known pixels, bool [R, R], for a model of another resolution: [side, side]."""
    at = np.arange(side) * len(known_RR) // side
    return known_RR[np.ix_(at, at)]


def growing(pictures_BRR3: np.ndarray, final_BRR: np.ndarray) -> list[str]:
    """Pictures whose other pixels are transparent: uint8 [B, R, R, 3] and bool [B, R, R] to data URLs."""
    alpha = np.where(final_BRR, 255, 0).astype(np.uint8)[..., None]
    return [data_url(Image.fromarray(picture)) for picture in np.concatenate([pictures_BRR3, alpha], -1)]


def final_pixels(done_B: np.ndarray, side: int, known_RR: np.ndarray | None) -> np.ndarray:
    """Which pixels of growing pictures are final, bool [B, R, R]: the first ones, and those that are known."""
    final = (np.arange(side * side) < done_B[:, None]).reshape(-1, side, side)
    return final if known_RR is None else final | known_RR


def heat(nats_RR: np.ndarray, most: float) -> np.ndarray:
    """Colours for nats, from 0 to `most`: float [R, R] to uint8 [R, R, 3]."""
    place = np.clip(nats_RR / most, 0, 1) * (len(_HEAT) - 1)
    channels = [np.interp(place, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def heat_legend() -> str:
    """The colours of `heat`, as a background in CSS, from left to right."""
    return f"linear-gradient(to right, {', '.join(f'rgb({r:.0f} {g:.0f} {b:.0f})' for r, g, b in _HEAT)})"


def preview(picture: Image.Image) -> str:
    """A picture to choose a square of, as a data URL."""
    small = picture.copy()
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return data_url(small)


def data_url(picture: Image.Image | np.ndarray) -> str:
    """A picture as PNG in a data URL."""
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
