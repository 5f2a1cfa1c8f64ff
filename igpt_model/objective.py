"""What is minimized, and the simple models that any loss is compared with. All in nats per pixel."""

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def autoregressive_loss(logits_BTK: Tensor, tokens_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood of every pixel given those before it (equation 1 of Chen et al. 2020)."""
    return F.cross_entropy(logits_BTK.float().flatten(0, 1), tokens_BT.flatten())


def image_losses(logits_BTK: Tensor, tokens_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each image, the mean over its pixels; [B]."""
    return F.cross_entropy(logits_BTK.float().transpose(1, 2), tokens_BT, reduction="none").mean(1)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Losses on held-out images of models that need no training, in nats per pixel."""

    uniform: float
    """Every colour equally likely: ln K."""
    unigram: float
    """The frequency of each colour in the training split."""
    position_unigram: float
    """The frequency of each colour at each position."""


class TokenCounts:
    """How often each colour stands at each position of the training images: int64 [T, K], accumulated."""

    def __init__(self, positions: int, colours: int) -> None:
        self.counts_TK = np.zeros((positions, colours), np.int64)

    def add(self, tokens_NT: np.ndarray) -> None:
        """Count the tokens of images, any integer type [N, T]."""
        positions, colours = self.counts_TK.shape
        flat = tokens_NT.astype(np.int64) + colours * np.arange(positions)
        self.counts_TK += np.bincount(flat.reshape(-1), minlength=positions * colours).reshape(positions, colours)

    def baselines(self, held_out: "TokenCounts") -> Baselines:
        """Score the frequencies on the counts of held-out images.

        Frequencies are smoothed so that an unseen colour costs a finite loss: one pseudo-count a colour for the
        unigram, and for each position pseudo-counts of weight one distributed as the unigram.
        """
        colours = self.counts_TK.shape[1]
        total_K = self.counts_TK.sum(0) + 1.0
        unigram_K = total_K / total_K.sum()
        smoothed_TK = self.counts_TK + unigram_K
        position_TK = smoothed_TK / smoothed_TK.sum(1, keepdims=True)
        pixels = held_out.counts_TK.sum()
        return Baselines(
            uniform=math.log(colours),
            unigram=float(-(held_out.counts_TK.sum(0) * np.log(unigram_K)).sum() / pixels),
            position_unigram=float(-(held_out.counts_TK * np.log(position_TK)).sum() / pixels),
        )
