"""Features of images: what the layers of a model hold about them, averaged over the positions."""

import torch
from torch import Tensor

from igpt_model.model import ImageGPT


@torch.inference_mode()
def pooled_features(model: ImageGPT, tokens_BT: Tensor) -> Tensor:
    """The features of every layer in one pass: int64 [B, T] to [layers + 1, B, width].

    Entry l is n^l of section 3.3 of Chen et al. 2020: what the first normalization of block l gives, averaged over the
    positions; the last entry is the final normalization's.
    """
    x_BTC = model.embed(tokens_BT)
    pooled = []
    for block in model.layers:
        pooled.append(block.attention_norm(x_BTC).mean(1))
        x_BTC = block(x_BTC)
    pooled.append(model.norm(x_BTC).mean(1))
    return torch.stack(pooled)


def untrained(model: ImageGPT, seed: int) -> ImageGPT:
    """The same network with fresh initial weights: what an honest probe compares a trained one with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageGPT(model.config).eval()
