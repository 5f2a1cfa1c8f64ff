"""Draws samples of a model, and compares them with the images of its dataset; sample_quality.py has the measures."""

import numpy as np
import torch

from igpt_model.config import DataSettings
from igpt_model.data.augment import every_augmentation
from igpt_model.data.same_tokens import check_same_tokens
from igpt_model.evaluating.sample_quality import FOLDS, LabelledPictures, SampleQuality, sample_quality
from igpt_model.inference.sample import Drawing, draw
from igpt_model.inference.threads import threads_for
from igpt_model.model.bundle import ModelBundle
from pipeline.dataset import verified_shards
from pipeline.dataset.snapshot import Snapshot
from pipeline.progress import Progress, silent

_MOST_IMAGES = 5000  # of a split; the time to train a classifier grows with them
# Training images and their augmentations to which distances are measured, and the pixels of all of these.
_MOST_SEEN, _MOST_PIXELS = 50_000, 12_800_000
_MOST_CLASSES = 100  # the time to train a classifier grows with them, too


def draw_and_compare(
    bundle: ModelBundle,
    data: Snapshot,
    settings: DataSettings,
    *,
    count: int,
    seed: int = 0,
    progress: Progress = silent,
) -> SampleQuality | None:
    """Draw `count` samples at temperature 1, and compare them with the dataset's training and test images.

    `settings` says how training images were augmented. None: the model does not draw images by itself, or fewer than
    two classes have enough images for a classifier, or more than a hundred have. Raises IgptError when the model and
    the dataset do not match.
    """
    config = bundle.model.config
    if config.objective == "masked" or config.low_resolution is not None or config.classes is not None:
        return None
    check_same_tokens(bundle, data)
    tokens_NT, labels_N = _images(data, "train")
    test_NT, test_labels_N = _images(data, "test")
    enough = np.flatnonzero(np.bincount(labels_N, minlength=1) >= FOLDS)
    if not 2 <= len(enough) <= _MOST_CLASSES or not len(test_NT):
        return None
    of_classes_N = np.isin(labels_N, enough)
    progress("samples", 0, 0, f"draw {count} and compare them with the dataset")
    with threads_for(config, images=count, positions=1):
        drawn_MT = draw(bundle.model, count, Drawing(seed=seed), progress=progress)
    return sample_quality(
        LabelledPictures(pictures_NHW3=bundle.pictures(tokens_NT[of_classes_N]), labels_N=labels_N[of_classes_N]),
        LabelledPictures(pictures_NHW3=bundle.pictures(test_NT), labels_N=test_labels_N),
        bundle.pictures(drawn_MT.cpu().numpy()),
        bundle.pictures(_augmented(tokens_NT, settings)),
        classes=len(data.classes),
        seed=seed,
    )


def _images(data: Snapshot, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first labelled images of a split, at most `_MOST_IMAGES`: tokens int64 [N, T] and classes int64 [N].

    A shard holds images of all classes, whatever the order of the source.
    """
    tokens, labels, missing = [], [], _MOST_IMAGES
    for shard in data.of_split(split):
        view = verified_shards.read(data, shard)
        rows = np.flatnonzero(view.labels_N >= 0)[:missing]
        tokens.append(view.tokens_NHW[rows].reshape(len(rows), data.resolution**2).astype(np.int64))
        labels.append(view.labels_N[rows].astype(np.int64))
        missing -= len(rows)
        if not missing:
            break
    return np.concatenate(tokens), np.concatenate(labels)


def _augmented(tokens_NT: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Images with everything that their augmentation makes of them, int64 [N', T]; of the first ones, if many."""
    ways = (2 * settings.crop_padding + 1) ** 2 * (1 + settings.flip)
    most = min(_MOST_SEEN, _MOST_PIXELS // tokens_NT.shape[1])
    kept_BT = torch.from_numpy(tokens_NT[: max(1, most // ways)])
    made = every_augmentation(kept_BT, flip=settings.flip, crop_padding=settings.crop_padding)
    return made.flatten(0, 1).numpy()
