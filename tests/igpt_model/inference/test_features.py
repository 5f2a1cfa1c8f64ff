"""Features of every layer, for each kind of model."""

import pytest
import torch

from igpt_model.inference.features import pooled_features
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
