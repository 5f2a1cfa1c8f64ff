"""What a run of the GPU benchmarks is given, and the sizes that it measures: the paper's, or tiny ones on a CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from igpt_model.model.config import ModelConfig, preset_shape

Record = Callable[[str, Mapping[str, object]], None]
"""Adds a row to the table of a title; sent at once, so that a later failure does not lose it."""

_TINY = {"igpt-s": (2, 32, 4), "igpt-m": (2, 48, 4), "igpt-l": (3, 32, 4)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all parts are given."""

    device_name: str
    """cuda, or cpu for a rehearsal at sizes that measure nothing."""
    out: Path
    dataset: str | None
    """A dataset that `igpt dataset build` made, with labels; none: nothing is pretrained."""
    minutes: float
    """Of pretraining."""
    fields: Mapping[str, object]
    """Fields of the pretraining's config."""

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return torch.device(self.device_name)

    @property
    def on_gpu(self) -> bool:
        """Whether this is a measurement, not a rehearsal."""
        return self.device_name == "cuda"

    def model(self, preset: str) -> ModelConfig:
        """The model of a preset at 32x32 with 512 colours; a tiny one in a rehearsal."""
        if not self.on_gpu:
            layers, width, heads = _TINY[preset]
            return ModelConfig(layers=layers, width=width, heads=heads, resolution=8, colours=512)
        shape = preset_shape(preset)  # type: ignore[arg-type]
        return ModelConfig(layers=shape.layers, width=shape.width, heads=shape.heads, resolution=32, colours=512)

    def images(self, count: int) -> int:
        """So many images; two in a rehearsal."""
        return count if self.on_gpu else 2
