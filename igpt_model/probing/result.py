"""The results of probing a model, the same network untrained, and the raw pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from igpt_model.inference.pooling import Pooling
from igpt_model.probing.head import ProbeHead
from igpt_model.probing.linear import LowDataScore, NeighbourScore, ProbeScore

SOURCES = ("pretrained", "untrained", "raw pixels")


@dataclass(frozen=True, kw_only=True)
class TrainedScore:
    """The accuracies of a trained classifier, at the step with the best validation accuracy."""

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
    test_keys: tuple[str, ...] = ()
    """The keys of these images in the dataset."""
    train_keys: tuple[tuple[str, ...], ...] = ()
    """The keys of the neighbours of each."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The probe scores of a model, the same network untrained, and the raw pixels."""

    layers: tuple[ProbeScore, ...]
    """Layers 0 to L, numbered as in features.py."""
    untrained_layers: tuple[ProbeScore, ...]
    raw_pixels: ProbeScore
    majority: float
    """Test accuracy of always predicting the most frequent training class."""
    train_images: int
    validation_images: int
    test_images: int
    low_data: Mapping[str, tuple[LowDataScore, ...]] = field(default_factory=dict)
    """By source of the features (SOURCES); networks at their best layer."""
    neighbours: Mapping[str, NeighbourScore] = field(default_factory=dict)
    fine_tuned: Mapping[str, TrainedScore] = field(default_factory=dict)
    supervised: TrainedScore | None = None
    """Of the convolutional network that learned from the labels alone."""
    supervised_low_data: tuple[LowDataScore, ...] = ()
    head: ProbeHead | None = None
    """The best layer's classifier."""
    confusion_KK: np.ndarray | None = None
    """Numbers of test images by true class (row) and predicted class (column), int64."""
    sheet: NeighbourSheet | None = None
    shards_computed: int = 0
    """Shards whose features were computed, counted for both networks; the others were cached."""
    shards_cached: int = 0
    pooling: Pooling = "mean"
    """Of the features of the networks."""

    @property
    def best_layer(self) -> int:
        """The layer with the best validation accuracy."""
        return int(np.argmax([score.validation_accuracy for score in self.layers]))

    @property
    def best(self) -> ProbeScore:
        """The score of the best layer."""
        return self.layers[self.best_layer]

    @property
    def untrained_best_layer(self) -> int:
        """The untrained network's layer with the best validation accuracy."""
        return int(np.argmax([score.validation_accuracy for score in self.untrained_layers]))

    @property
    def untrained_best(self) -> ProbeScore:
        """The score of the untrained network's best layer."""
        return self.untrained_layers[self.untrained_best_layer]
