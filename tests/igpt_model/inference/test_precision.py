"""bfloat16, as on a GPU, gives the results of float32 within a tolerance; here on a CPU."""

from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from igpt_model.inference.features import pooled_features
from igpt_model.inference.precision import half_on_gpu, in_bfloat16
from igpt_model.inference.sample import draw
from igpt_model.inference.score import score
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT, KeyValueCache
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


def digits() -> torch.Tensor:
    return torch.from_numpy(load_digits().images.reshape(-1, 64).clip(0, 15).astype(np.int64))


@pytest.fixture(scope="module")
def trained() -> ImageGPT:
    """A model that has learned to draw digits, so that some of its distributions are sharp."""
    torch.manual_seed(0)
    tokens_NT = digits()[:1500]
    model = ImageGPT(ModelConfig(layers=2, width=64, heads=4, resolution=8, colours=16))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(100):
        batch_BT = tokens_NT[torch.randint(0, len(tokens_NT), (64,))]
        loss = functional.cross_entropy(model(batch_BT).flatten(0, 1), batch_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.6  # nats; ln 16 is 2.77
    return model.eval()


def deep() -> ImageGPT:
    """As deep as iGPT-S, with random weights: rounding adds up over layers."""
    torch.manual_seed(0)
    model = ImageGPT(ModelConfig(layers=24, width=128, heads=4, resolution=8, colours=16))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@torch.inference_mode()
def drawing_logits(model: ImageGPT, tokens_BT: torch.Tensor) -> torch.Tensor:
    """What each pixel is drawn from, given the pixels before it, through the cache and one by one as when drawing."""
    cache = KeyValueCache(model.config, len(tokens_BT), model.positions)
    logits = [model.head(model.transform(model.embed(tokens_BT[:, :0]), cache)[:, -1:])]
    for position in range(1, model.config.positions):
        y_B1C = model.transform(model.embed_next(tokens_BT[:, position - 1], position), cache)
        logits.append(model.head(y_B1C))
    return torch.cat(logits, 1).float()


@pytest.mark.parametrize("name", ["trained", "deep"])
def test_what_is_drawn_from_moves_by_less_than_three_hundredths(name: str, trained: ImageGPT) -> None:
    model = trained if name == "trained" else deep()
    tokens_BT = digits()[1500:1564]
    exact_BTK = drawing_logits(model, tokens_BT).log_softmax(2)
    half_BTK = drawing_logits(in_bfloat16(model), tokens_BT).log_softmax(2)
    assert not torch.equal(exact_BTK, half_BTK)
    of_pixels_BT = (exact_BTK - half_BTK).gather(2, tokens_BT[..., None])[..., 0]
    assert of_pixels_BT.abs().max() < 0.1
    assert of_pixels_BT.mean(1).abs().max() < 0.01, "nats per pixel of an image"
    variation_BT = (exact_BTK.exp() - half_BTK.exp()).abs().sum(2) / 2
    assert variation_BT.max() < 0.03 and variation_BT.mean() < 0.01


def test_images_drawn_in_bfloat16_are_as_likely_and_as_bright(trained: ImageGPT) -> None:
    exact_BT, half_BT = draw(trained, 256), draw(in_bfloat16(trained), 256)
    assert 0.9 < (exact_BT == half_BT).float().mean() < 1
    nats, nats_of_half = (score(trained, drawn_BT).nats_per_pixel.mean() for drawn_BT in (exact_BT, half_BT))
    assert abs(nats - nats_of_half) < 0.02
    tones = exact_BT.float().mean(0) - half_BT.float().mean(0)
    assert tones.abs().max() < 0.3 and abs(tones.mean()) < 0.05  # of 16
