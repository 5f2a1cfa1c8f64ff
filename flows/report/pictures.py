"""Pictures as small files that browsers show: WebP, without loss where that is small enough."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAMES = 16
"""Of a moving picture, at most."""
_TILE_BYTES = 48_000
_SHEET_BYTES = 800_000
_MOVING_BYTES = 2_000_000
_FRAME_MILLISECONDS, _LAST_MILLISECONDS = 700, 2500
_BAR = 28  # height of the line of text above a frame, in pixels
_QUALITIES = (90, 70, 50)


def tile(image: np.ndarray) -> bytes:
    """A small picture, uint8 [H, W, 3], as WebP."""
    return _still(Image.fromarray(image), _TILE_BYTES)


def sheet(png: bytes) -> bytes:
    """A sheet of pictures, a PNG file, as WebP."""
    return _still(Image.open(io.BytesIO(png)).convert("RGB"), _SHEET_BYTES)


def _still(image: Image.Image, limit: int) -> bytes:
    """WebP of at most `limit` bytes: without loss if possible, then with more and more loss, then smaller."""
    data = _encoded(image, lossless=True)
    for quality in _QUALITIES:
        if len(data) <= limit:
            return data
        data = _encoded(image, quality=quality)
    return data if len(data) <= limit else _still(image.resize((image.width // 2, image.height // 2)), limit)


def _encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def moving(pngs: Mapping[int, bytes]) -> bytes | None:
    """Sheets by step, PNG files, as one animated WebP with the step above each; None unless there are two or more.

    The last step is shown longest. Frames of another size than the last one's are left out.
    """
    opened = {step: Image.open(io.BytesIO(png)).convert("RGB") for step, png in sorted(pngs.items())}
    size = list(opened.values())[-1].size if opened else None
    frames = [_with_step(image, step) for step, image in opened.items() if image.size == size]
    if len(frames) < 2:
        return None
    for count in (FRAMES, FRAMES // 2, FRAMES // 4):
        chosen = _evenly(frames, count)
        for quality in (None, *_QUALITIES):
            data = _animated(chosen, quality)
            if len(data) <= _MOVING_BYTES:
                return data
    halved = [image.resize((image.width // 2, image.height // 2)) for image in _evenly(frames, 2)]
    return _animated(halved, _QUALITIES[-1])


def _evenly(frames: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """At most `count` frames, with the first and the last."""
    rows = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return [frames[row] for row in rows]


def _animated(frames: Sequence[Image.Image], quality: int | None) -> bytes:
    """One file of the frames; without a quality, without loss."""
    options: dict[str, object] = {"lossless": True} if quality is None else {"quality": quality}
    durations = [_FRAME_MILLISECONDS] * (len(frames) - 1) + [_LAST_MILLISECONDS]
    return _encoded(
        frames[0], save_all=True, append_images=list(frames[1:]), duration=durations, loop=0, method=4, **options
    )


def _with_step(image: Image.Image, step: int) -> Image.Image:
    frame = Image.new("RGB", (image.width, image.height + _BAR), "white")
    frame.paste(image, (0, _BAR))
    font = ImageFont.load_default(18)
    ImageDraw.Draw(frame).text((8, _BAR // 2), f"step {step:,}", fill="black", font=font, anchor="lm")
    return frame
