"""Fine-tuning learns, does not modify the model, and selects on validation; network digests identify contents."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.probing.config import FineTuneConfig
from igpt_model.probing.feature_cache import network_digest
from igpt_model.probing.fine_tune import fine_tune
from igpt_model.probing.labelled import LabelledTokens, SplitTokens
from pipeline.errors import IgptError

CONFIG = FineTuneConfig(steps=40, batch=16, learning_rate=0.005)


def make_bundle(**fields: object) -> ModelBundle:
    torch.manual_seed(0)
    config = ModelConfig(layers=2, width=32, heads=4, resolution=4, colours=8, **fields)  # type: ignore[arg-type]
    colours = np.linspace(-1, 1, 8, dtype=np.float32)[:, None].repeat(3, 1)
    return ModelBundle(model=ImageGPT(config).eval(), palette_K3=colours, classes=("dark above", "dark below"))


def halves(count: int, seed: int) -> LabelledTokens:
    """Noisy images with a dark upper or lower half, which no linear function of colour counts can distinguish."""
    random = np.random.default_rng(seed)
    labels_N = random.integers(0, 2, count)
    tokens_NT = random.integers(0, 8, (count, 16))
    upper_N8 = np.arange(16)[None] < 8
    dark_NT = np.where(labels_N[:, None] == 0, upper_N8, ~upper_N8)
    tokens_NT[dark_NT] //= 2
    return LabelledTokens(tokens_NT=tokens_NT, labels_N=labels_N)


def splits() -> SplitTokens:
    return SplitTokens(train=halves(300, 0), validation=halves(60, 1), test=halves(100, 2))


@pytest.mark.parametrize("fields", [{}, {"objective": "masked"}, {"low_resolution": 2}])
def test_fine_tuning_learns_and_does_not_change_the_model(fields: dict[str, object]) -> None:
    model = make_bundle(**fields)
    before = network_digest(model)
    score = fine_tune(model, splits(), CONFIG)
    assert score.test_accuracy > 0.75
    assert network_digest(model) == before
    assert fine_tune(model, splits(), CONFIG) == score


def test_a_poisoned_test_split_changes_nothing_but_its_own_accuracy() -> None:
    of, wrong = splits(), replace(splits().test, labels_N=1 - splits().test.labels_N)
    honest = fine_tune(make_bundle(), of, CONFIG)
    misled = fine_tune(make_bundle(), replace(of, test=wrong), CONFIG)
    assert misled == replace(honest, test_accuracy=misled.test_accuracy)
    assert misled.test_accuracy == pytest.approx(1 - honest.test_accuracy)


def test_an_impossible_config_is_refused() -> None:
    with pytest.raises(IgptError, match="steps is 0: it must be at least 1"):
        FineTuneConfig(steps=0)
