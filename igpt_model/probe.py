"""The linear probe: how well a linear classifier tells classes from features (section 3.4 of Chen et al. 2020)."""

import warnings
from dataclasses import dataclass

import numpy as np

from igpt_model.config import ProbeConfig


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features of images, float32 [n, width], and their classes, int64 [n]."""

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How one set of features did: accuracies are shares of images, 0 to 1."""

    test_accuracy: float
    validation_accuracy: float
    strength: float
    """The inverse L2 strength that did best on the validation split."""


def fit_probe(
    train: LabelledFeatures, validation: LabelledFeatures, test: LabelledFeatures, config: ProbeConfig
) -> ProbeScore:
    """Fit a logistic regression for every strength, take the best on validation, and score that one on test.

    Features are standardized with the training images' mean and deviation. The test split is looked at once.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 (not on every machine that trains)
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    mean = train.features.mean(0)
    scale = 1 / (train.features.std(0) + 1e-6)
    inputs = (train.features - mean) * scale
    held_out = (validation.features - mean) * scale
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in sorted(config.strengths):  # among equals the strongest regularization
        classifier = LogisticRegression(C=strength, max_iter=config.max_iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak fit shows in its validation accuracy
            classifier.fit(inputs, train.labels)
        accuracy = float((classifier.predict(held_out) == validation.labels).mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, classifier)
    assert best is not None
    accuracy, strength, classifier = best
    on_test = classifier.predict((test.features - mean) * scale)
    return ProbeScore(
        test_accuracy=float((on_test == test.labels).mean()), validation_accuracy=accuracy, strength=strength
    )


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

    @property
    def best_layer(self) -> int:
        """The layer that did best on validation."""
        return int(np.argmax([score.validation_accuracy for score in self.layers]))

    @property
    def best(self) -> ProbeScore:
        """The score of the best layer."""
        return self.layers[self.best_layer]

    @property
    def untrained_best(self) -> ProbeScore:
        """The score of the untrained network's best layer on validation."""
        return max(self.untrained_layers, key=lambda score: score.validation_accuracy)
