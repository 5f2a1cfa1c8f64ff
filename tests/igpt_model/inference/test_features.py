"""Features of every layer, for each kind of model."""

import numpy as np
import pytest
import torch

from igpt_model.inference.features import image_features, pooled_features
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import Condition, ImageGPT
from pipeline.errors import IgptError
from tests.igpt_model.model.test_network import BY_CLASS, MASKED, SMALL, UPSCALING, make, some_tokens


@pytest.fixture
def model() -> ImageGPT:
    return make(SMALL)


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
    with pytest.raises(IgptError, match="gets the class of an image as input"):
        pooled_features(make(BY_CLASS), tokens)


@pytest.mark.parametrize("config", [SMALL, MASKED, UPSCALING], ids=["plain", "masked", "upscaling"])
def test_rows_and_pixels_average_to_the_mean_and_chosen_layers_are_those_of_all(config: ModelConfig) -> None:
    model, tokens = make(config), some_tokens()
    condition = Condition(low_BP=some_tokens(5, 4)) if config is UPSCALING else Condition()
    mean = pooled_features(model, tokens, condition=condition)
    rows = pooled_features(model, tokens, condition=condition, pooling="rows")
    none = pooled_features(model, tokens, condition=condition, pooling="none")
    layers = model.config.layers + 1
    assert (rows.shape, none.shape) == ((layers, 5, 4, 32), (layers, 5, 4, 4, 32))
    torch.testing.assert_close(none.mean(3), rows, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rows.mean(2), mean, atol=1e-6, rtol=1e-5)
    for chosen in ([0], [1], [layers - 1], [2, 0]):
        assert torch.equal(pooled_features(model, tokens, condition=condition, layers=chosen), mean[chosen])


def test_the_vector_of_a_pixel_is_of_the_pixels_before_it() -> None:
    tokens, places = some_tokens(1), torch.arange(16).view(4, 4)
    other = tokens.clone()
    other[0, 6] = (tokens[0, 6] + 3) % 11  # the pixel in row 1, column 2
    for config, changed in ((SMALL, places > 6), (MASKED, places >= 0)):
        model = make(config)
        before, after = (pooled_features(model, of, layers=[2], pooling="none")[0, 0] for of in (tokens, other))
        assert torch.equal((before != after).any(-1), changed)


def test_any_number_of_images_goes_through_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = ModelBundle(model=make(SMALL), palette_K3=np.zeros((11, 3), np.float32), classes=())
    tokens = some_tokens(7)
    at_once = image_features(bundle, tokens, layers=[1], pooling="rows")
    monkeypatch.setattr("igpt_model.inference.passes._MOST_IMAGES", 3)
    torch.testing.assert_close(image_features(bundle, tokens, layers=[1], pooling="rows"), at_once)
