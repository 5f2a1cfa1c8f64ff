"""bfloat16, as on a GPU, gives the results of float32 within a tolerance; here on a CPU."""

from unittest import mock

import numpy as np
import pytest
import torch

from igpt_model.inference.features import pooled_features
from igpt_model.inference.precision import half_on_gpu
from igpt_model.inference.score import score
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.config import FineTuneConfig
from igpt_model.probing.fine_tune import fine_tune
from igpt_model.probing.labelled import LabelledTokens, SplitTokens
from tests.igpt_model.model.test_network import MASKED, SMALL, make, some_tokens


def in_half(module: str) -> object:
    """As on a GPU, on this CPU."""
    return mock.patch(f"igpt_model.{module}.half_on_gpu", lambda device: torch.autocast("cpu", torch.bfloat16))


def test_a_gpu_computes_in_bfloat16_and_a_cpu_in_float32() -> None:
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    with half_on_gpu(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == product.dtype
    assert half_on_gpu(torch.device("cuda")).fast_dtype == torch.bfloat16  # type: ignore[attr-defined]


@pytest.mark.parametrize("config", [SMALL, MASKED])
def test_features_move_by_less_than_two_hundredths(config: object) -> None:
    model = make(config)  # type: ignore[arg-type]
    exact_LBC = pooled_features(model, some_tokens())
    with in_half("inference.features"):
        half_LBC = pooled_features(model, some_tokens())
    assert half_LBC.dtype == torch.float32
    assert not torch.equal(half_LBC, exact_LBC)
    for half_BC, exact_BC in zip(half_LBC, exact_LBC, strict=True):
        assert (half_BC - exact_BC).norm() < 0.02 * exact_BC.norm()


def test_scores_move_by_less_than_a_hundredth_of_a_nat() -> None:
    model = make(SMALL)
    exact = score(model, some_tokens())
    with in_half("inference.score"):
        half = score(model, some_tokens())
    assert half.pixels_BT.dtype == torch.float32
    assert not torch.equal(half.pixels_BT, exact.pixels_BT)
    torch.testing.assert_close(half.nats_per_pixel, exact.nats_per_pixel, atol=0.01, rtol=0)


def test_fine_tuning_learns_as_well() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    tokens = (random.integers(0, 5, (60, 16)) + 5 * labels[:, None]).astype(np.int64)
    images = LabelledTokens(tokens_NT=tokens, labels_N=labels)
    splits = SplitTokens(train=images, validation=images, test=images)
    folder = ModelBundle(model=make(SMALL), palette_K3=np.zeros((11, 3), np.float32), classes=("a", "b"))
    config = FineTuneConfig(steps=30, batch=20, learning_rate=0.01)
    with in_half("probing.fine_tune"):
        half = fine_tune(folder, splits, config)
    assert half.test_accuracy == fine_tune(folder, splits, config).test_accuracy == 1
