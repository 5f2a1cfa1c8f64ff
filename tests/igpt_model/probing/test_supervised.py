"""A convolutional network learns from all labels and from few, selects on validation, and is the same for a seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from igpt_model.probing.config import SupervisedConfig
from igpt_model.probing.labelled import LabelledTokens, SplitTokens
from igpt_model.probing.supervised import ResNet, _augment, low_data_supervised, train_supervised
from pipeline.errors import IgptError

CONFIG = SupervisedConfig(steps=60, batch=32)
CPU = torch.device("cpu")
GREYS = np.linspace(-1, 1, 8, dtype=np.float32)[:, None].repeat(3, 1)


def stripes(count: int, seed: int) -> LabelledTokens:
    """Noisy 8x8 images with horizontal or vertical stripes at random places: all pixels have the same mean."""
    random = np.random.default_rng(seed)
    labels_N = random.integers(0, 2, count)
    phases_N11 = random.integers(0, 4, count)[:, None, None]
    rows_188, columns_188 = np.mgrid[:8, :8][:, None]
    places_N88 = np.where(labels_N[:, None, None] == 0, rows_188, columns_188)
    light_N88 = (places_N88 + phases_N11) // 2 % 2
    tokens_N88 = 4 * light_N88 + random.integers(0, 4, (count, 8, 8))
    return LabelledTokens(tokens_NT=tokens_N88.reshape(count, 64).astype(np.int64), labels_N=labels_N)


SPLITS = SplitTokens(train=stripes(300, 0), validation=stripes(80, 1), test=stripes(120, 2))


def test_it_learns_what_is_nowhere_in_particular_and_a_seed_gives_one_network() -> None:
    score = train_supervised(SPLITS, GREYS, CONFIG, CPU)
    assert score.test_accuracy > 0.9
    assert train_supervised(SPLITS, GREYS, CONFIG, CPU) == score


def test_test_labels_are_for_its_own_accuracy_alone() -> None:
    wrong = replace(SPLITS.test, labels_N=1 - SPLITS.test.labels_N)
    honest, misled = (train_supervised(of, GREYS, CONFIG, CPU) for of in (SPLITS, replace(SPLITS, test=wrong)))
    assert misled == replace(honest, test_accuracy=misled.test_accuracy)
    assert misled.test_accuracy == pytest.approx(1 - honest.test_accuracy)


def test_few_labels_are_drawn_several_times() -> None:
    few = low_data_supervised(SPLITS, GREYS, 3, 2, 0, replace(CONFIG, steps=10), CPU)
    assert (few.labels_per_class, few.draws) == (3, 2)
    assert 0.3 < few.mean <= 1 and few.deviation >= 0


def test_the_network_is_the_papers_with_one_block_a_stage() -> None:
    network = ResNet(10)
    assert sum(weight.numel() for weight in network.parameters()) == 78_042
    for side in (4, 8, 32):
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 10)


def test_images_are_moved_by_an_eighth_at_most_and_mirrored_on_request() -> None:
    image_3RR = torch.arange(3 * 16 * 16, dtype=torch.float32).view(3, 16, 16)
    images_B3RR = image_3RR.repeat(400, 1, 1, 1)
    moved_B3RR = _augment(images_B3RR, torch.Generator().manual_seed(0), flip=False)
    corners = moved_B3RR[:, 0, 8, 8] - image_3RR[0, 8, 8]
    rows, columns = torch.div(corners + 2, 16, rounding_mode="floor"), (corners + 2) % 16 - 2
    assert {*rows.tolist()} == {*columns.tolist()} == {-2, -1, 0, 1, 2}
    assert (moved_B3RR[:, 0, 8].diff(dim=1) >= 0).all()
    mirrored_B3RR = _augment(images_B3RR, torch.Generator().manual_seed(0), flip=True)
    share = float((mirrored_B3RR[:, 0, 8].diff(dim=1)[:, 4:12] < 0).all(1).float().mean())
    assert 0.4 < share < 0.6


def test_batches_of_one_image_cannot_be_normalized() -> None:
    with pytest.raises(IgptError, match="batch is 1: it must be at least 2"):
        SupervisedConfig(batch=1)
