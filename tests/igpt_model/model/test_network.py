"""The network: size, initial weights, causality, masked and conditional models, and features."""

import math
from dataclasses import replace

import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.inference.features import concatenated, pooled_features
from igpt_model.model.config import ModelConfig, Preset, preset_shape
from igpt_model.model.linear import Linear
from igpt_model.model.losses import TokenCounts, image_losses
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


@pytest.mark.parametrize(("preset", "millions"), [("igpt-s", 76), ("igpt-m", 455), ("igpt-l", 1362), ("igpt-xl", 6801)])
def test_presets_have_the_published_number_of_parameters(preset: Preset, millions: int) -> None:
    shape = preset_shape(preset)
    for resolution in (32, 48, 64):
        config = ModelConfig(
            layers=shape.layers, width=shape.width, heads=shape.heads, resolution=resolution, colours=512
        )
        with torch.device("meta"):
            model = ImageGPT(config)
            logits = model(torch.zeros(1, resolution**2, dtype=torch.int64))
        assert logits.shape == (1, resolution**2, 512)
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert counted == config.parameters
        if resolution == 32:
            assert counted // 1_000_000 == millions


@pytest.mark.parametrize("config", [SMALL, MASKED, BY_CLASS, UPSCALING, replace(UPSCALING, classes=3)])
def test_the_parameters_of_every_kind_are_counted(config: ModelConfig) -> None:
    assert sum(parameter.numel() for parameter in ImageGPT(config).parameters()) == config.parameters


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


def test_the_masked_loss_counts_masked_pixels_only() -> None:
    logits = torch.randn(3, 16, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens = some_tokens(3)
    masked = torch.zeros(3, 16, dtype=torch.bool)
    masked[0, :1] = masked[1, 3:8] = masked[2, :] = True
    losses = image_losses(logits, tokens, masked)
    losses.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(2) > 0, masked)
    for image in range(3):
        alone = torch.nn.functional.cross_entropy(logits[image][masked[image]], tokens[image][masked[image]])
        assert losses[image].item() == pytest.approx(alone.item(), abs=1e-6)


@torch.inference_mode()
def test_features_are_the_normalized_inputs_of_each_block_averaged(model: ImageGPT) -> None:
    tokens = some_tokens()
    features = pooled_features(model, tokens)
    assert features.shape == (4, 5, 32)
    x = model.inputs(tokens)
    for layer, block in enumerate(model.layers):
        torch.testing.assert_close(features[layer], block.attention_norm(x).mean(1))
        x = block(x)
    torch.testing.assert_close(model.head(features[-1][:, None])[:, 0], model(tokens).mean(1), atol=1e-5, rtol=1e-5)
    pair = concatenated(features, [1, 3])
    assert torch.equal(pair, torch.cat([features[1], features[3]], 1))


@torch.inference_mode()
def test_features_of_the_other_kinds() -> None:
    tokens = some_tokens()
    masked = torch.arange(16).expand(5, 16) % 3 == 0
    bert = make(MASKED)
    hidden = torch.where(masked, (tokens + 3) % 11, tokens)
    assert torch.equal(pooled_features(bert, tokens, masked_BT=masked), pooled_features(bert, hidden, masked_BT=masked))
    assert not torch.equal(pooled_features(bert, tokens), pooled_features(bert, hidden))
    upscaling, low = make(UPSCALING), Condition(low_BP=some_tokens(5, 4))
    features = pooled_features(upscaling, tokens, condition=low)
    logits = upscaling(tokens, low).mean(1)  # over the pixels alone
    torch.testing.assert_close(upscaling.head(features[-1][:, None])[:, 0], logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(IgptError, match="told the class"):
        pooled_features(make(BY_CLASS), tokens)


def test_unigram_baselines_are_the_entropies_of_the_counted_colours() -> None:
    counts = TokenCounts(2, 2)
    counts.add(torch.tensor([[0, 1]] * 9000 + [[1, 1]] * 1000).numpy())
    levels = counts.baselines(counts)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert levels.uniform == pytest.approx(math.log(2))
    assert levels.position_unigram == pytest.approx(entropy / 2, abs=1e-3)
    assert levels.unigram == pytest.approx(-(0.45 * math.log(0.45) + 0.55 * math.log(0.55)), abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not divisible by heads 4"),
        ({"objective": "masked", "class_conditional": True}, "objective is masked"),
        ({"objective": "masked", "low_resolution": 8}, "objective is masked"),
        ({"mask_fraction": 1.0}, "mask_fraction is 1.0"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5"),
        ({"low_resolution": 0}, "low_resolution is 0"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"crop_padding": -1}, "crop_padding is -1"),
    ],
)
def test_an_impossible_config_is_refused(fields: dict, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        PretrainConfig.from_fields(runs="runs", **fields)


def test_a_small_image_must_fit_into_the_large_one() -> None:
    for low in (3, 4, 8):
        with pytest.raises(IgptError, match=f"low_resolution is {low}"):
            replace(SMALL, low_resolution=low)
    config = PretrainConfig.from_fields(runs="runs", class_conditional=True)
    with pytest.raises(IgptError, match="the dataset has no classes"):
        config.model.for_images(resolution=32, colours=512, classes=0)


@pytest.mark.parametrize("shape", [(16, 64, 96), (3, 256, 64), (1, 512, 128), (5, 113, 64), (16, 32, 64)])
def test_products_and_their_gradients_are_the_same_as_convolutions(shape: tuple[int, int, int]) -> None:
    """With 64 or more inputs and 512 rows it is computed as a convolution, otherwise as a matrix product."""
    images, positions, inputs = shape
    generator = torch.Generator().manual_seed(0)
    layer = Linear(inputs, 48)
    torch.nn.init.normal_(layer.weight, generator=generator)
    x = torch.randn(images, positions, inputs, generator=generator, requires_grad=True)
    upstream = torch.randn(images, positions, 48, generator=generator)
    layer(x).backward(upstream)
    assert x.grad is not None and layer.weight.grad is not None
    torch.testing.assert_close(layer(x), x @ layer.weight.T, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(x.grad, upstream @ layer.weight, atol=1e-4, rtol=1e-5)
    expected = upstream.flatten(0, 1).T @ x.detach().flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad, expected, atol=1e-3, rtol=1e-4)
