"""The shape and kind of an Image GPT, and the presets of the paper."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.errors import IgptError
from pipeline.typed_config import values
from pipeline.typed_config.ranges import Range

Preset = Literal["tiny", "small", "igpt-s", "igpt-m", "igpt-l", "igpt-xl"]
Objective = Literal["autoregressive", "masked"]
Count = Annotated[int, Range(at_least=1)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and kind of an Image GPT. Stored in model folders; fields that older folders lack have defaults."""

    layers: Count
    width: Count
    heads: Count
    resolution: Count
    colours: Count
    objective: Objective = "autoregressive"
    """Autoregressive: predict each pixel from those before it. Masked (BERT): predict masked pixels from all others."""
    classes: Count | None = None
    """Class-conditional: number of classes, each with its own start vector; none: one start vector for all images."""
    low_resolution: Count | None = None
    """Super-resolution: side of the small image whose tokens precede the pixels; none: no small image."""

    def __post_init__(self) -> None:
        values.check(self)
        check_heads(self.width, self.heads)
        check_objective(self.objective, by_class=self.classes is not None, upscales=self.low_resolution is not None)
        if self.low_resolution is not None and (
            self.low_resolution >= self.resolution or self.resolution % self.low_resolution
        ):
            raise IgptError(
                f"low_resolution is {self.low_resolution}: it must be a smaller divisor of the resolution "
                f"{self.resolution}"
            )

    @property
    def positions(self) -> int:
        """Number of pixels of an image, in raster order; one token per pixel."""
        return self.resolution**2

    @property
    def low_positions(self) -> int:
        """Number of tokens of the small image that precedes the pixels; 0 without one."""
        return 0 if self.low_resolution is None else self.low_resolution**2

    @property
    def sequence(self) -> int:
        """Sequence length in the blocks: tokens of the small image plus pixels."""
        return self.low_positions + self.positions

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        block = 12 * self.width**2 + 2 * self.width
        starts = 0 if self.objective == "masked" else 1 if self.classes is None else self.classes
        return self.layers * block + self.width * (2 * self.colours + self.sequence + starts + 1)

    @property
    def flops_per_image(self) -> int:
        """Floating point operations of the matrix products of a forward and backward pass; causal attention is half.

        A product of [m, k] and [k, n] takes 2 m k n operations; the backward pass takes two such products.
        """
        attention = (2 if self.objective == "autoregressive" else 4) * self.width * self.sequence**2
        blocks = self.layers * (24 * self.width**2 * self.sequence + attention)
        return 3 * (blocks + 2 * self.colours * self.width * self.positions)


def check_heads(width: int, heads: int) -> None:
    """Raise IgptError when the width is not divisible by the number of heads."""
    if width % heads:
        raise IgptError(f"width {width} is not divisible by heads {heads}: choose a width that is a multiple of heads")


def check_objective(objective: Objective, *, by_class: bool, upscales: bool) -> None:
    """Raise IgptError when the masked objective is combined with class conditioning or super-resolution."""
    if objective == "masked" and (by_class or upscales):
        raise IgptError(
            "objective is masked: it supports neither class_conditional nor low_resolution; leave both out, or set "
            "objective to autoregressive"
        )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Layers, width and heads of a preset, and its default learning rate."""

    layers: int
    width: int
    heads: int
    learning_rate: float


def preset_shape(preset: Preset) -> Shape:
    """The shape of a preset: S, M, L and XL as in Chen et al. 2020 (section 3.3); tiny and small are for CPUs."""
    match preset:
        case "tiny":
            return Shape(layers=6, width=64, heads=4, learning_rate=0.005)
        case "small":
            return Shape(layers=8, width=128, heads=8, learning_rate=0.003)
        case "igpt-s":
            return Shape(layers=24, width=512, heads=8, learning_rate=0.003)
        case "igpt-m":
            return Shape(layers=36, width=1024, heads=8, learning_rate=0.003)
        case "igpt-l":
            return Shape(layers=48, width=1536, heads=16, learning_rate=0.001)
        case "igpt-xl":
            return Shape(layers=60, width=3072, heads=16, learning_rate=0.0003)
