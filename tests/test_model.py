"""The Image GPT's mathematics: size, initial weights, causality, and cached equal to uncached."""

import math

import pytest
import torch

from igpt_model.config import ModelConfig, PretrainConfig, preset_shape
from igpt_model.features import pooled_features
from igpt_model.model import ImageGPT, KeyValueCache
from igpt_model.objective import TokenCounts, autoregressive_loss
from igpt_model.sample import complete, draw
from pipeline.errors import IgptError

SMALL = ModelConfig(layers=3, width=32, heads=4, resolution=4, colours=11)


@pytest.fixture
def model() -> ImageGPT:
    torch.manual_seed(0)
    built = ImageGPT(SMALL).eval()
    torch.nn.init.normal_(built.head.weight, std=0.3)  # the initial zeros would hide every difference
    return built


def some_tokens(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 11, (count, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("preset", "millions"), [("igpt-s", 76), ("igpt-m", 455), ("igpt-l", 1362), ("igpt-xl", 6801)])
def test_presets_have_the_published_number_of_parameters(preset: str, millions: int) -> None:
    shape = preset_shape(preset)
    config = ModelConfig(layers=shape.layers, width=shape.width, heads=shape.heads, resolution=32, colours=512)
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in ImageGPT(config).parameters())
    assert counted == config.parameters
    assert counted // 1_000_000 == millions


def test_initial_weights_have_openais_deviations() -> None:
    torch.manual_seed(0)
    config = ModelConfig(layers=4, width=128, heads=4, resolution=16, colours=256)
    fresh = ImageGPT(config)
    block = fresh.layers[0]
    expected = {
        fresh.tokens.weight: 0.02,
        fresh.positions: 0.01,
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
    assert autoregressive_loss(ImageGPT(SMALL)(tokens), tokens).item() == pytest.approx(math.log(11), abs=1e-5)


def test_no_pixel_sees_itself_or_a_later_one(model: ImageGPT) -> None:
    tokens = some_tokens()
    for position in (0, 7, 15):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 11
        difference = (model(tokens) - model(changed)).abs().amax((0, 2))
        assert difference[: position + 1].max() < 1e-6
        assert position == 15 or difference[position + 1 :].min() > 1e-6


@torch.inference_mode()
def test_cached_logits_equal_uncached_ones(model: ImageGPT) -> None:
    tokens = some_tokens()
    whole = model(tokens)
    for given in (0, 1, 8):
        cache = KeyValueCache(SMALL, len(tokens), model.positions)
        parts = [model.transform(model.embed(tokens[:, : given + 1]), cache)]
        for position in range(given + 1, 16):
            parts.append(model.transform(model.embed_next(tokens[:, position - 1], position), cache))
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_completions_keep_what_was_given_and_repeat_with_the_seed(model: ImageGPT) -> None:
    tokens = some_tokens()
    first = complete(model, tokens[:, :9], seed=3)
    assert torch.equal(first[:, :9], tokens[:, :9])
    assert torch.equal(first, complete(model, tokens[:, :9], seed=3))
    assert not torch.equal(first, complete(model, tokens[:, :9], seed=4))
    assert torch.equal(complete(model, tokens), tokens)


@torch.inference_mode()
def test_a_cold_draw_takes_the_likeliest_colour(model: ImageGPT) -> None:
    drawn = draw(model, 2, temperature=1e-6)
    assert torch.equal(drawn, draw(model, 2, top_k=1, seed=9))
    assert torch.equal(model(drawn).argmax(2), drawn)


def test_drawn_pixels_follow_the_models_distribution(model: ImageGPT) -> None:
    drawn = draw(model, 4000, seed=5)[:, 0]
    expected = model(some_tokens(1))[0, 0].softmax(0)
    found = torch.bincount(drawn, minlength=11) / 4000
    assert (found - expected).abs().max() < 0.03


@torch.inference_mode()
def test_features_are_the_normalized_inputs_of_each_block_averaged(model: ImageGPT) -> None:
    tokens = some_tokens()
    features = pooled_features(model, tokens)
    assert features.shape == (4, 5, 32)
    torch.testing.assert_close(features[0], model.layers[0].attention_norm(model.embed(tokens)).mean(1))
    logits = model(tokens).mean(1)
    torch.testing.assert_close(model.head(features[-1]), logits, atol=1e-5, rtol=1e-5)


def test_unigram_baselines_are_the_entropies_of_what_they_counted() -> None:
    counts = TokenCounts(2, 2)
    counts.add(torch.tensor([[0, 1]] * 9000 + [[1, 1]] * 1000).numpy())
    levels = counts.baselines(counts)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert levels.uniform == pytest.approx(math.log(2))
    assert levels.position_unigram == pytest.approx(entropy / 2, abs=1e-3)
    assert levels.unigram == pytest.approx(-(0.45 * math.log(0.45) + 0.55 * math.log(0.55)), abs=1e-3)


def test_an_impossible_shape_is_refused() -> None:
    with pytest.raises(IgptError, match="width 30 is not divisible by heads 4"):
        PretrainConfig(runs="runs", width=30, heads=4)
