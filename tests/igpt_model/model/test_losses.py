"""Losses of masked and whole images, masks with their share of the pixels, and the baselines."""

import math

import numpy as np
import pytest
import torch

from igpt_model.model.losses import baselines, draw_masks, image_losses
from tests.igpt_model.model.test_network import some_tokens


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


def test_unigram_baselines_are_the_entropies_of_the_counted_colours() -> None:
    counts_TK = np.array([[9000, 1000], [0, 10000]])
    levels = baselines(counts_TK, counts_TK)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert levels.uniform == pytest.approx(math.log(2))
    assert levels.position_unigram == pytest.approx(entropy / 2, abs=1e-3)
    assert levels.unigram == pytest.approx(-(0.45 * math.log(0.45) + 0.55 * math.log(0.55)), abs=1e-3)


def test_masks_have_their_share_and_are_never_empty() -> None:
    numbers = torch.arange(4000)
    masks = draw_masks(numbers, 1024, seed=0, purpose="test", fraction=0.15)
    assert masks.float().mean().item() == pytest.approx(0.15, abs=0.001)
    assert (masks.float().mean(0) - 0.15).abs().max() < 0.03
    few = draw_masks(numbers, 4, seed=0, purpose="test", fraction=0.15)
    assert few.any(1).all()
    assert (
        0.15**2 < few[:, :2].all(1).float().mean().item() < 0.04
    )  # 0.0225: an empty mask gets a single pixel, so no pairs
    assert torch.equal(masks[100:200], draw_masks(numbers[100:200], 1024, seed=0, purpose="test", fraction=0.15))
    assert not torch.equal(masks, draw_masks(numbers, 1024, seed=1, purpose="test", fraction=0.15))
