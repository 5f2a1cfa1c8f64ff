"""What a server and the process of a model say to each other, over a pipe that pickles it. One request at a time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flows.playground.facts import Facts


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The model is open."""

    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Asks for pictures: `complete`, `sample` or `upscale`."""

    task: str
    picture_RR3: np.ndarray | None
    """uint8 [R, R, 3] of the model's resolution R; None: a sample needs none."""
    known_RR: np.ndarray | None
    """The pixels that a completion keeps, bool [R, R]."""
    params: dict[str, Any] = field(default_factory=dict)
    """Of `RegisteredImageGPT.predict`; those that are left out are the model's choice."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Asks what a model makes of a picture."""

    picture_RR3: np.ndarray
    label: int | None
    """The class of the picture, for a class-conditional model."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Ends the drawing. Where none goes on any more, it changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Growing:
    """Pictures while they are drawn."""

    pictures_BRR3: np.ndarray
    """uint8 [B, R, R, 3]."""
    done_B: np.ndarray
    """The number of pixels of each, row by row, that are final."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures, uint8 [B, R, R, 3]."""

    pictures_BRR3: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Near:
    """A training image that is like a picture."""

    picture_RR3: np.ndarray
    """uint8 [R, R, 3]."""
    class_name: str
    cosine: float
    """Of its standardized features and those of the picture, -1 to 1."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model makes of a picture."""

    nats_RR: np.ndarray | None
    """float32 [R, R], of each pixel given those before it; None: the model does not tell."""
    nats_per_pixel: float | None
    classes: tuple[tuple[str, float], ...]
    """Names and probabilities, the likeliest first; empty without a probe."""
    nearest: tuple[Near, ...] = ()
    """Training images, nearest first; empty where no probe has cached their features."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What is wrong, in a line."""

    line: str


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The drawing was ended."""
