"""Likelihoods are those of a distribution over images, whatever the batch."""

import math
from dataclasses import replace

import pytest
import torch

from igpt_model.inference.sample import Drawing, draw
from igpt_model.inference.score import score
from igpt_model.model.network import Condition
from pipeline.errors import IgptError
from tests.igpt_model.model.test_network import BY_CLASS, MASKED, SMALL, UPSCALING, make, some_tokens


def test_likelihoods_are_those_of_a_distribution_over_images() -> None:
    """The probabilities of all 81 images of 2 x 2 pixels and 3 colours add up to one."""
    model = make(replace(SMALL, resolution=2, colours=3))
    images = torch.cartesian_prod(*[torch.arange(3)] * 4)
    result = score(model, images)
    assert (-result.pixels_BT.double().sum(1)).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(result.bits_per_pixel * math.log(2), result.nats_per_pixel)
    # More likely images are sampled more often.
    drawn = draw(model, 20_000, Drawing(seed=2))
    counts = torch.bincount(drawn @ torch.tensor([27, 9, 3, 1]), minlength=81) / 20_000
    assert (counts - (-4 * result.nats_per_pixel).exp()).abs().max() < 0.01


def test_scores_do_not_depend_on_the_batch_and_follow_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (SMALL, BY_CLASS, UPSCALING):
        model, tokens = make(config), some_tokens()
        condition = Condition(
            labels_B=torch.arange(5) if config.classes else None,
            low_BP=some_tokens(5, 4) if config.low_resolution else None,
        )
        whole = score(model, tokens, condition=condition).pixels_BT
        log_probabilities = model(tokens, condition).log_softmax(2)
        expected = -log_probabilities.gather(2, tokens[..., None])[..., 0]
        torch.testing.assert_close(whole, expected.detach())
        monkeypatch.setattr("igpt_model.inference.passes._LOGIT_PIXELS", 32)
        torch.testing.assert_close(score(model, tokens, condition=condition).pixels_BT, whole)
        monkeypatch.undo()


def test_a_masked_model_scores_nothing() -> None:
    with pytest.raises(IgptError, match="masked model has no likelihood"):
        score(make(MASKED), some_tokens())
