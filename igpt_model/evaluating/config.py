"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.typed_config.config import Config


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Which images a model is evaluated on."""

    shown_by: ClassVar[str] = "`igpt config evaluate`"

    dataset: str = ""
    """URL or path of a dataset of the model's resolution and palette."""
    snapshot: int | None = None
    """Number of the dataset snapshot; none: the newest."""
    split: Literal["train", "validation", "test"] = "test"
    """The images to evaluate on; models are chosen by their validation images, and reported by their test images."""
