"""Training losses, and simple baselines to compare them with. All in nats per pixel."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt_model.model.randomness import uniform


def pixel_losses(logits_BTK: Tensor, tokens_BT: Tensor) -> Tensor:
    """Negative log-likelihood of every pixel, float32 [B, T]."""
    return F.cross_entropy(logits_BTK.flatten(0, 1).float(), tokens_BT.flatten(), reduction="none").view_as(tokens_BT)


def image_losses(logits_BTK: Tensor, tokens_BT: Tensor, masked_BT: Tensor | None = None) -> Tensor:
    """The loss of each image, [B]; the loss of a batch is their mean.

    Autoregressive: the mean over all pixels. Masked: the mean over the masked pixels only. (Section 2.1 of Chen
    et al. 2020; the means are those of OpenAI's code.)
    """
    losses_BT = pixel_losses(logits_BTK, tokens_BT)
    if masked_BT is None:
        return losses_BT.mean(1)
    return torch.where(masked_BT, losses_BT, 0).sum(1) / masked_BT.sum(1)


def draw_masks(numbers_B: Tensor, positions: int, *, seed: int, purpose: str, fraction: float) -> Tensor:
    """Mask each pixel of each image with probability `fraction`, independently; bool [B, T].

    If no pixel of an image falls below `fraction`, the pixel with the smallest random number is masked, so that every
    image has a loss. At 15% this affects one in 30,000 images of 8x8, and practically none of 32x32.
    """
    drawn_BT = uniform(seed, purpose, numbers_B, positions)
    return drawn_BT <= drawn_BT.amin(1, keepdim=True).clamp(min=fraction)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Losses of simple count-based models on held-out images, in nats per pixel."""

    uniform: float
    """Every colour equally likely: ln K."""
    unigram: float
    """The frequency of each colour in the training split."""
    position_unigram: float
    """The frequency of each colour at each position."""


def baselines(train_TK: np.ndarray, held_out_TK: np.ndarray) -> Baselines:
    """Evaluate the baselines on held-out images, from how often each colour is at each position, int64 [T, K].

    Frequencies are smoothed so that an unseen colour has a finite loss: one pseudo-count per colour for the
    unigram, and for each position pseudo-counts that sum to one and follow the unigram.
    """
    colours = train_TK.shape[1]
    total_K = train_TK.sum(0) + 1.0
    unigram_K = total_K / total_K.sum()
    smoothed_TK = train_TK + unigram_K
    position_TK = smoothed_TK / smoothed_TK.sum(1, keepdims=True)
    pixels = held_out_TK.sum()
    return Baselines(
        uniform=math.log(colours),
        unigram=float(-(held_out_TK.sum(0) * np.log(unigram_K)).sum() / pixels),
        position_unigram=float(-(held_out_TK * np.log(position_TK)).sum() / pixels),
    )
