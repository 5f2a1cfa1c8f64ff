"""Over what the activations of an image are averaged, and the shape of the features that are left."""

import math
from typing import Literal, get_args

from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError

Pooling = Literal["mean", "rows", "none"]
"""mean: over all pixels, as in the paper; rows: over the pixels of each row; none: a vector for every pixel."""
_BATCH, _BATCH_BYTES = 128, 1 << 28


def shape_of(config: ModelConfig, pooling: Pooling) -> tuple[int, ...]:
    """The shape of an image's features of one layer: (width,), (R, width) of rows, (R, R, width) without pooling."""
    side = config.resolution
    return {"mean": (config.width,), "rows": (side, config.width), "none": (side, side, config.width)}[pooling]


def checked(text: object) -> Pooling:
    """A pooling by its name. Raises IgptError for another one."""
    for pooling in get_args(Pooling):
        if text == pooling:
            return pooling
    raise IgptError(f"pooling is {str(text)[:50]!r}: it must be one of {', '.join(get_args(Pooling))}")


def numbers_of(config: ModelConfig, pooling: Pooling) -> int:
    """How many numbers the features of an image have for one layer."""
    return math.prod(shape_of(config, pooling))


def images_at_once(config: ModelConfig, pooling: Pooling, layers: int) -> int:
    """How many images go through a model at once, so that the features of so many layers stay below 256 MiB."""
    return max(1, min(_BATCH, _BATCH_BYTES // (4 * layers * numbers_of(config, pooling))))
