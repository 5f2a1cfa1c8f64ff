"""Classifiers on features: the linear probe on all or few labels, and nearest neighbours.

The linear probe is that of section 3.4 of Chen et al. 2020. Hyperparameters (strength, number of neighbours, layer) are
selected on the validation split; the test split is evaluated once, after the selection.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igpt_model.probing.head import ProbeHead

_ROWS_AT_ONCE = 1024  # images per similarity matrix, which bounds memory


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features of images, float32 [n, width], and their classes, int64 [n]."""

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """The features of a dataset's three splits."""

    train: LabelledFeatures
    validation: LabelledFeatures
    test: LabelledFeatures


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """The accuracies of a probe on one set of features, 0 to 1."""

    test_accuracy: float
    validation_accuracy: float
    strength: float
    """The inverse L2 strength with the best validation accuracy."""


@dataclass(frozen=True, kw_only=True)
class FittedProbe:
    """A fitted linear probe and its score."""

    score: ProbeScore
    head: ProbeHead
    test_predictions: np.ndarray
    """The predicted classes of the test images, int64."""


@dataclass(frozen=True, kw_only=True)
class LowDataScore:
    """Linear probes fitted on several random draws of a few labelled images per class."""

    labels_per_class: int
    mean: float
    """Mean of the test accuracies."""
    deviation: float
    """Their standard deviation (with draws - 1)."""
    draws: int

    @classmethod
    def of(cls, labels_per_class: int, accuracies: Sequence[float]) -> "LowDataScore":
        """The score from the test accuracy of each draw."""
        return cls(
            labels_per_class=labels_per_class,
            mean=float(np.mean(accuracies)),
            deviation=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
            draws=len(accuracies),
        )


@dataclass(frozen=True, kw_only=True)
class NeighbourScore:
    """The accuracies of a nearest-neighbour classifier, 0 to 1."""

    test_accuracy: float
    validation_accuracy: float
    neighbours: int
    """The number of neighbours with the best validation accuracy."""


def fit_probe(splits: SplitFeatures, strengths: Sequence[float], max_iterations: int) -> FittedProbe:
    """Fit a logistic regression for each strength, select the best on validation, and score it on test.

    Features are standardized with the mean and standard deviation of the training images.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 (not installed on machines that only train)
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    train, validation, test = splits.train, splits.validation, splits.test
    mean_C = train.features.mean(0)
    scale_C = 1 / (train.features.std(0) + 1e-6)
    inputs_NC = (train.features - mean_C) * scale_C
    held_out_NC = (validation.features - mean_C) * scale_C
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in sorted(strengths):  # on ties the strongest regularization wins
        classifier = LogisticRegression(C=strength, max_iter=max_iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a bad fit shows in its validation accuracy
            classifier.fit(inputs_NC, train.labels)
        accuracy = float((classifier.predict(held_out_NC) == validation.labels).mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, classifier)
    assert best is not None
    accuracy, strength, classifier = best
    predictions = classifier.predict((test.features - mean_C) * scale_C)
    score = ProbeScore(
        test_accuracy=float((predictions == test.labels).mean()), validation_accuracy=accuracy, strength=strength
    )
    weight_KC, bias_K = classifier.coef_, classifier.intercept_
    if len(classifier.classes_) == 2:  # scikit-learn has one row, the logit of the second class against the first
        weight_KC, bias_K = np.concatenate([0 * weight_KC, weight_KC]), np.concatenate([0 * bias_K, bias_K])
    head = ProbeHead(
        mean_C=mean_C.astype(np.float32),
        scale_C=scale_C.astype(np.float32),
        weight_KC=weight_KC.astype(np.float32),
        bias_K=bias_K.astype(np.float32),
        labels_K=classifier.classes_.astype(np.int64),
    )
    return FittedProbe(score=score, head=head, test_predictions=predictions)


def draw_labels(labels_N: np.ndarray, labels_per_class: int, seed: Sequence[int]) -> np.ndarray:
    """Rows of `labels_per_class` random images of each class, or all if a class has fewer; determined by the seed."""
    random = np.random.default_rng(list(seed))
    rows = [random.permutation(np.flatnonzero(labels_N == label))[:labels_per_class] for label in np.unique(labels_N)]
    return np.sort(np.concatenate(rows))


def low_data_score(
    splits: SplitFeatures, labels_per_class: int, draws: int, strengths: Sequence[float], max_iterations: int, seed: int
) -> LowDataScore:
    """Fit the linear probe on several draws of a few labels; the strength is selected for each draw."""
    accuracies = []
    for draw in range(draws):
        rows = draw_labels(splits.train.labels, labels_per_class, (seed, labels_per_class, draw))
        few = LabelledFeatures(features=splits.train.features[rows], labels=splits.train.labels[rows])
        drawn = SplitFeatures(train=few, validation=splits.validation, test=splits.test)
        accuracies.append(fit_probe(drawn, strengths, max_iterations).score.test_accuracy)
    return LowDataScore.of(labels_per_class, accuracies)


def neighbour_score(splits: SplitFeatures, counts: Sequence[int]) -> NeighbourScore:
    """Classify by the nearest training images; their number is selected on validation.

    Similarity is the cosine of standardized features; votes are weighted by 1 + similarity.
    """
    max_count = min(max(counts), len(splits.train.labels))
    validation = nearest(splits.train.features, splits.validation.features, max_count)
    accuracies = {
        count: _vote_accuracy(validation, splits.train.labels, splits.validation.labels, count)
        for count in sorted({min(count, max_count) for count in counts})
    }
    best = max(accuracies, key=lambda count: accuracies[count])  # on ties the smallest number wins
    test = nearest(splits.train.features, splits.test.features, best)
    return NeighbourScore(
        test_accuracy=_vote_accuracy(test, splits.train.labels, splits.test.labels, best),
        validation_accuracy=accuracies[best],
        neighbours=best,
    )


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest training images of each image, nearest first."""

    rows_NK: np.ndarray
    """int64."""
    cosines_NK: np.ndarray


def nearest(train_NC: np.ndarray, images_MC: np.ndarray, count: int) -> Neighbours:
    """The `count` training images nearest to each image, by the cosine of standardized features."""
    mean_C, scale_C = train_NC.mean(0), 1 / (train_NC.std(0) + 1e-6)
    inputs_NC = _unit((train_NC - mean_C) * scale_C)
    rows, cosines = [], []
    for begin in range(0, len(images_MC), _ROWS_AT_ONCE):
        cosines_MN = _unit((images_MC[begin : begin + _ROWS_AT_ONCE] - mean_C) * scale_C) @ inputs_NC.T
        nearest_MK = np.argpartition(-cosines_MN, count - 1, 1)[:, :count]
        order_MK = np.argsort(-np.take_along_axis(cosines_MN, nearest_MK, 1), 1, kind="stable")
        rows.append(np.take_along_axis(nearest_MK, order_MK, 1))
        cosines.append(np.take_along_axis(cosines_MN, rows[-1], 1))
    return Neighbours(rows_NK=np.concatenate(rows), cosines_NK=np.concatenate(cosines))


def _unit(x_NC: np.ndarray) -> np.ndarray:
    return x_NC / np.maximum(np.linalg.norm(x_NC, axis=1, keepdims=True), 1e-12)


def _vote_accuracy(neighbours: Neighbours, train_labels: np.ndarray, labels: np.ndarray, count: int) -> float:
    """The accuracy of classifying images by a weighted vote of their `count` nearest neighbours."""
    classes = int(train_labels.max()) + 1
    votes_MC = np.zeros((len(labels), classes))
    chosen_MK = train_labels[neighbours.rows_NK[:, :count]]
    weights_MK = 1 + neighbours.cosines_NK[:, :count]  # positive, so that no vote counts against a class
    for column in range(count):
        votes_MC[np.arange(len(labels)), chosen_MK[:, column]] += weights_MK[:, column]
    return float((votes_MC.argmax(1) == labels).mean())
