"""The network: size, initial weights, causality, masked and conditional models, and features."""

import math
from dataclasses import replace

import pytest
import torch

from igpt_model.model.config import ModelConfig
from igpt_model.model.losses import image_losses
from igpt_model.model.network import Condition, ImageGPT, KeyValueCache
from pipeline.errors import IgptError

SMALL = ModelConfig(layers=3, width=32, heads=4, resolution=4, colours=11)
MASKED = replace(SMALL, objective="masked")
BY_CLASS = replace(SMALL, classes=5)
UPSCALING = replace(SMALL, low_resolution=2)


def make(config: ModelConfig) -> ImageGPT:
    torch.manual_seed(0)
    built = ImageGPT(config).eval()
    torch.nn.init.normal_(built.head.weight, std=0.3)  # the initial zeros would hide every difference
    return built


@pytest.fixture
def model() -> ImageGPT:
    return make(SMALL)


def some_tokens(count: int = 5, positions: int = 16) -> torch.Tensor:
    return torch.randint(0, 11, (count, positions), generator=torch.Generator().manual_seed(1))


def test_initial_weights_have_openais_deviations() -> None:
    torch.manual_seed(0)
    config = ModelConfig(layers=4, width=128, heads=4, resolution=16, colours=256, classes=200, low_resolution=8)
    fresh = ImageGPT(config)
    block = fresh.layers[0]
    expected = {
        fresh.tokens.weight: 0.02,
        fresh.class_starts.weight: 0.02,
        fresh.positions: 0.01,
        fresh.low_positions: 0.01,
        block.attention.qkv.weight: 128**-0.5,
        block.attention.out.weight: (128 * 4) ** -0.5,
        block.mlp_in.weight: 0.02,
        block.mlp_out.weight: 0.02,
    }
    for weight, deviation in expected.items():
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
    assert not fresh.head.weight.any()


def test_an_untrained_model_is_as_good_as_uniform() -> None:
    tokens = some_tokens()
    assert image_losses(ImageGPT(SMALL)(tokens), tokens).tolist() == pytest.approx([math.log(11)] * 5, abs=1e-5)


def test_no_pixel_sees_itself_or_a_later_one(model: ImageGPT) -> None:
    tokens = some_tokens()
    for position in (0, 7, 15):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 11
        difference = (model(tokens) - model(changed)).abs().amax((0, 2))
        assert difference[: position + 1].max() < 1e-6
        assert position == 15 or difference[position + 1 :].min() > 1e-6


@pytest.mark.parametrize("config", [SMALL, BY_CLASS, UPSCALING])
@torch.inference_mode()
def test_cached_logits_equal_uncached_ones(config: ModelConfig) -> None:
    model, tokens = make(config), some_tokens()
    condition = Condition(
        labels_B=torch.arange(5) if config.classes else None,
        low_BP=some_tokens(5, 4) if config.low_resolution else None,
    )
    whole = model(tokens, condition)
    for given in (0, 1, 8):
        cache = KeyValueCache(config, len(tokens), model.positions)
        prefix = model.transform(model.embed(tokens[:, :given], condition), cache)
        parts = [prefix[:, config.low_positions :]]
        for position in range(given + 1, 16):
            parts.append(model.transform(model.embed_next(tokens[:, position - 1], position), cache))
        torch.testing.assert_close(model.head(torch.cat(parts, 1)), whole, atol=1e-5, rtol=1e-5)


def test_a_class_changes_every_pixel_and_is_needed() -> None:
    model, tokens = make(BY_CLASS), some_tokens()
    labels = torch.tensor([0, 1, 2, 3, 4])
    first, second = (model(tokens, Condition(labels_B=(labels + shift) % 5)) for shift in (0, 1))
    assert (first - second).abs().amax(2).min() > 1e-6
    with pytest.raises(IgptError, match="class-conditional"):
        model(tokens)


def test_an_offset_of_the_start_vector_changes_every_pixel_of_its_image(model: ImageGPT) -> None:
    tokens_BT = torch.zeros(3, model.config.positions, dtype=torch.int64)
    offsets_BC = torch.zeros(3, model.config.width)
    offsets_BC[2] = 1
    condition = Condition(start_offsets_BC=offsets_BC)
    plain, told = model(tokens_BT), model(tokens_BT, condition)
    assert torch.equal(told[:2], plain[:2]) and (told[2] != plain[2]).any(-1).all()
    assert torch.equal(model(tokens_BT[2:], condition.rows(slice(2, 3))), told[2:])


def test_the_small_image_is_seen_by_every_pixel_and_needed() -> None:
    model, tokens, low = make(UPSCALING), some_tokens(), some_tokens(5, 4)
    for place in range(4):
        changed = low.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        difference = model(tokens, Condition(low_BP=low)) - model(tokens, Condition(low_BP=changed))
        assert difference.abs().amax(2).min() > 1e-7
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    difference = (model(tokens, Condition(low_BP=low)) - model(changed, Condition(low_BP=low))).abs().amax((0, 2))
    assert difference[:8].max() < 1e-6 < difference[8:].min()
    with pytest.raises(IgptError, match="upscales"):
        model(tokens)


def test_what_is_masked_does_not_leak_and_what_is_not_is_seen_from_everywhere() -> None:
    model, tokens = make(MASKED), some_tokens()
    masked = torch.zeros(5, 16, dtype=torch.bool)
    masked[:, [2, 9, 15]] = True
    logits = model(tokens, masked_BT=masked)
    hidden = torch.where(masked, (tokens + 3) % 11, tokens)
    assert torch.equal(model(hidden, masked_BT=masked), logits)
    for position in (0, 8, 14):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 11
        assert (model(changed, masked_BT=masked) - logits).abs().amax((0, 2)).min() > 1e-7
