"""What the measures say of samples whose quality is known: held-out images, training images, noise, one class."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

from igpt_model.evaluating.sample_quality import (
    LabelledPictures,
    SampleQuality,
    nearest_distances,
    sample_quality,
    train_classifier,
)

TRAIN = 900


@pytest.fixture(scope="module")
def digits() -> LabelledPictures:
    """scikit-learn's 1,797 digits in a random order."""
    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    grey = np.rint(loaded.images * (255 / 16)).astype(np.uint8)[order]
    return LabelledPictures(pictures_NHW3=grey[..., None].repeat(3, 3), labels_N=loaded.target[order])


@pytest.fixture(scope="module")
def train(digits: LabelledPictures) -> LabelledPictures:
    return part(digits, slice(None, TRAIN))


@pytest.fixture(scope="module")
def held_out(digits: LabelledPictures) -> LabelledPictures:
    return part(digits, slice(TRAIN, 1400))


def part(images: LabelledPictures, rows: slice | np.ndarray) -> LabelledPictures:
    return LabelledPictures(pictures_NHW3=images.pictures_NHW3[rows], labels_N=images.labels_N[rows])


def quality(
    train: LabelledPictures, held_out: LabelledPictures, samples: np.ndarray, seen: np.ndarray | None = None
) -> SampleQuality:
    return sample_quality(train, held_out, samples, train.pictures_NHW3 if seen is None else seen, classes=10)


def test_real_images_that_nobody_saw_are_as_good_as_held_out_ones(
    digits: LabelledPictures, train: LabelledPictures, held_out: LabelledPictures
) -> None:
    others = digits.pictures_NHW3[1400:]
    made = quality(train, held_out, others)
    assert (made.samples, made.held_out_images) == (397, 500)
    assert made.classifier_accuracy > 0.96 and made.sure_held_out > 0.85
    assert made.sure_samples == pytest.approx(made.sure_held_out, abs=0.05)
    assert made.sample_distance == pytest.approx(made.held_out_distance, rel=0.1)
    assert sum(made.class_shares) == pytest.approx(1) and min(made.class_shares) > 0.05
    same = quality(train, held_out, held_out.pictures_NHW3)
    assert (same.sure_samples, same.sample_distance) == (same.sure_held_out, same.held_out_distance)


def test_training_images_are_known_by_heart_also_where_they_were_moved(
    train: LabelledPictures, held_out: LabelledPictures
) -> None:
    again = quality(train, held_out, train.pictures_NHW3[:200])
    assert again.sample_distance < 0.01 < 10 < again.held_out_distance
    moved = np.roll(train.pictures_NHW3, 1, 2)
    assert quality(train, held_out, moved[:200]).sample_distance > again.held_out_distance
    seen = np.concatenate([train.pictures_NHW3, moved])
    assert quality(train, held_out, moved[:200], seen).sample_distance < 0.01


def test_what_is_no_digit_cannot_be_named(train: LabelledPictures, held_out: LabelledPictures) -> None:
    """Pixels with the values that each has in digits, drawn without regard to the other pixels."""
    random = np.random.default_rng(1)
    pixels = train.pictures_NHW3[..., 0]
    rows = random.integers(0, len(pixels), (300, *pixels.shape[1:]))
    drawn = np.take_along_axis(pixels, rows, 0)[..., None].repeat(3, 3)
    made = quality(train, held_out, drawn)
    assert made.sure_samples < 0.5 * made.sure_held_out
    assert made.sample_distance > 1.3 * made.held_out_distance


def test_a_class_that_is_not_drawn_shows(train: LabelledPictures, held_out: LabelledPictures) -> None:
    without_3 = part(held_out, np.flatnonzero(held_out.labels_N != 3))
    made = quality(train, held_out, without_3.pictures_NHW3)
    assert min(made.class_shares) == made.class_shares[3] < 0.02
    assert min(share for label, share in enumerate(made.class_shares) if label != 3) > 0.05


def test_a_class_without_training_images_counts_as_never_drawn(
    train: LabelledPictures, held_out: LabelledPictures
) -> None:
    few = part(train, np.flatnonzero(train.labels_N < 2)[:60])
    made = quality(few, held_out, held_out.pictures_NHW3)
    assert made.class_shares[2:] == (0.0,) * 8 and made.classifier_accuracy < 0.3


def test_the_classifiers_probabilities_can_be_taken_at_their_word(
    train: LabelledPictures, held_out: LabelledPictures
) -> None:
    classifier = train_classifier(train)
    probabilities = classifier.predict_proba(held_out.pictures_NHW3.reshape(500, -1).astype(np.float32) / 255)
    right = classifier.classes_[probabilities.argmax(1)] == held_out.labels_N
    assert probabilities.max(1).mean() == pytest.approx(right.mean(), abs=0.02)
    assert log_loss(held_out.labels_N, probabilities) < 0.15


def test_distances_are_those_of_all_pairs(train: LabelledPictures) -> None:
    random = np.random.default_rng(2)
    images, others = random.random((700, 12), np.float32), random.random((90, 12), np.float32)
    pairs = np.sqrt(np.square(images[:, None].astype(np.float64) - others).mean(2))
    assert nearest_distances(images, others) == pytest.approx(pairs.min(1), abs=1e-6)


def test_the_same_images_give_the_same_numbers(train: LabelledPictures, held_out: LabelledPictures) -> None:
    few = part(train, slice(None, 300))
    made = quality(few, held_out, held_out.pictures_NHW3[:50])
    assert quality(few, held_out, held_out.pictures_NHW3[:50]) == made
