"""How good samples of a model are, measured against the labelled images of its dataset.

Three questions, each answered for held-out images too, which no model can be expected to exceed: can the samples be
named, by a classifier that was trained on the real images; are all classes among them; are they new, or training images
that the model has learned by heart?
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.model_selection import GridSearchCV

SURE = 0.9
"""The probability of a class above which the classifier counts as sure."""
_LANDMARKS = 1000  # images, at most, that the kernel compares an image with; the time grows with their square
_WIDTHS = (2.0, 4.0)  # of the kernel, in units of one over the variance of an image
_STRENGTHS = (10.0, 100.0, 1000.0)
FOLDS = 3
"""Images that a class must have at least, one for each part of the cross-validation."""
_ROWS_AT_ONCE = 512  # which bounds the memory that distances take


@dataclass(frozen=True, kw_only=True)
class LabelledPictures:
    """Pictures, uint8 [N, H, W, 3], and their class numbers, int64 [N]."""

    pictures_NHW3: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SampleQuality:
    """What a classifier trained on real images, and distances to those, say of samples and of held-out images."""

    samples: int
    held_out_images: int
    sure_samples: float
    """The share of the samples of whose class the classifier is sure, 0 to 1."""
    sure_held_out: float
    """The same of held-out images."""
    classifier_accuracy: float
    """The share of the held-out images that it classifies rightly, 0 to 1."""
    class_shares: tuple[float, ...]
    """The share of the samples that it takes for each class; 0 for classes without training images."""
    sample_distance: float
    """Median over the samples of the distance to the nearest training image: the root of the mean squared difference of
    pixel values from 0 to 255."""
    held_out_distance: float
    """The same of held-out images."""


def sample_quality(
    train: LabelledPictures,
    held_out: LabelledPictures,
    samples_MHW3: np.ndarray,
    seen_NHW3: np.ndarray,
    *,
    classes: int,
    seed: int = 0,
) -> SampleQuality:
    """Compare samples, uint8 [M, H, W, 3], with the images of a dataset.

    The classifier is trained on `train`. Distances are to `seen_NHW3`: the training images in each way in which the
    model may have seen them, such as moved by a pixel. The classes of `train` must be at least 2, with 3 images each.
    """
    classifier = train_classifier(train, seed)
    samples_MC, held_out_NC = _flat(samples_MHW3), _flat(held_out.pictures_NHW3)
    of_samples_MK, of_held_out_NK = classifier.predict_proba(samples_MC), classifier.predict_proba(held_out_NC)
    named_M, named_N = (classifier.classes_[p.argmax(1)] for p in (of_samples_MK, of_held_out_NK))
    seen_NC = _flat(seen_NHW3)
    return SampleQuality(
        samples=len(samples_MC),
        held_out_images=len(held_out_NC),
        sure_samples=float((of_samples_MK.max(1) > SURE).mean()),
        sure_held_out=float((of_held_out_NK.max(1) > SURE).mean()),
        classifier_accuracy=float((named_N == held_out.labels_N).mean()),
        class_shares=tuple((np.bincount(named_M, minlength=classes) / len(named_M)).tolist()),
        sample_distance=float(np.median(nearest_distances(samples_MC, seen_NC))) * 255,
        held_out_distance=float(np.median(nearest_distances(held_out_NC, seen_NC))) * 255,
    )


def train_classifier(train: LabelledPictures, seed: int = 0) -> "GridSearchCV":
    """A classifier of flattened pictures, float32 [N, C] from 0 to 1: a logistic regression on a Gaussian kernel.

    The kernel's width and the strength are those with the lowest cross-entropy in a cross-validation, so that its
    probabilities can be taken at their word.
    """
    from sklearn.kernel_approximation import Nystroem  # noqa: PLC0415 (not installed on machines that only train)
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import GridSearchCV, StratifiedKFold  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    images_NC = _flat(train.pictures_NHW3)
    landmarks = min(_LANDMARKS, len(images_NC) * (FOLDS - 1) // FOLDS)
    unit = 1 / (images_NC.shape[1] * max(float(images_NC.var()), 1e-6))
    search = GridSearchCV(
        make_pipeline(Nystroem(n_components=landmarks, random_state=seed), LogisticRegression(max_iter=300)),
        {"nystroem__gamma": [width * unit for width in _WIDTHS], "logisticregression__C": _STRENGTHS},
        scoring="neg_log_loss",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
    )
    # Products this small gain nothing from more threads, which on busy cores wait for each other for minutes.
    with threadpool_limits(limits=1):
        return search.fit(images_NC, train.labels_N)


def nearest_distances(images_MC: np.ndarray, others_NC: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest of the others, float64 [M]: the root of the mean squared difference."""
    others_CN = others_NC.T.astype(np.float64)
    squares_N = np.square(others_CN).sum(0)
    nearest = []
    for begin in range(0, len(images_MC), _ROWS_AT_ONCE):
        rows_RC = images_MC[begin : begin + _ROWS_AT_ONCE].astype(np.float64)
        squared_RN = np.square(rows_RC).sum(1)[:, None] + squares_N - 2 * rows_RC @ others_CN
        nearest.append(squared_RN.min(1))
    return np.sqrt(np.maximum(np.concatenate(nearest), 0) / images_MC.shape[1])


def _flat(pictures_NHW3: np.ndarray) -> np.ndarray:
    """Pictures, uint8 [N, H, W, 3], as rows of values from 0 to 1, float32 [N, C]."""
    return pictures_NHW3.reshape(len(pictures_NHW3), -1).astype(np.float32) / 255
