"""What the probes of a model came to, beside the same network untrained, the raw pixels and the paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from igpt_model.probing.head import ProbeHead
from igpt_model.probing.linear import LowDataScore, NeighbourScore, ProbeScore

SOURCES = ("pretrained", "untrained", "raw pixels")


@dataclass(frozen=True, kw_only=True)
class FineTuneScore:
    """How full fine-tuning did, of the step that did best on validation."""

    test_accuracy: float
    validation_accuracy: float
    step: int


@dataclass(frozen=True, kw_only=True)
class NeighbourSheet:
    """Some test images and their nearest training images by the features of the best layer."""

    test_tokens_NT: np.ndarray
    test_labels_N: np.ndarray
    train_tokens_NKT: np.ndarray
    train_labels_NK: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The probes of a model, of the same network untrained, and of the raw pixels."""

    layers: tuple[ProbeScore, ...]
    """Layer 0 to L, as features.py numbers them."""
    untrained_layers: tuple[ProbeScore, ...]
    raw_pixels: ProbeScore
    majority: float
    """Share of the test images that are of the most frequent training class."""
    train_images: int
    validation_images: int
    test_images: int
    low_data: Mapping[str, tuple[LowDataScore, ...]] = field(default_factory=dict)
    """By the source of the features (SOURCES), networks at their best layer."""
    neighbours: Mapping[str, NeighbourScore] = field(default_factory=dict)
    fine_tuned: Mapping[str, FineTuneScore] = field(default_factory=dict)
    head: ProbeHead | None = None
    """The best layer's classifier."""
    confusion_KK: np.ndarray | None = None
    """How many test images of a class (row) it takes for a class (column), int64."""
    sheet: NeighbourSheet | None = None
    shards_computed: int = 0
    """Shards whose features were computed, of both networks; the others lay in the cache."""
    shards_cached: int = 0

    @property
    def best_layer(self) -> int:
        """The layer that did best on validation."""
        return int(np.argmax([score.validation_accuracy for score in self.layers]))

    @property
    def best(self) -> ProbeScore:
        """The score of the best layer."""
        return self.layers[self.best_layer]

    @property
    def untrained_best_layer(self) -> int:
        """The untrained network's best layer on validation."""
        return int(np.argmax([score.validation_accuracy for score in self.untrained_layers]))

    @property
    def untrained_best(self) -> ProbeScore:
        """Its score."""
        return self.untrained_layers[self.untrained_best_layer]
