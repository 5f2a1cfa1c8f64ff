"""Features of images: activations of each layer, averaged over the positions."""

import torch
from torch import Tensor

from igpt_model.inference.precision import half_on_gpu
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import UNCONDITIONAL, Condition, ImageGPT
from pipeline.errors import IgptError

BATCH = 128


@torch.inference_mode()
def pooled_features(
    model: ImageGPT,
    tokens_BT: Tensor,
    *,
    condition: Condition = UNCONDITIONAL,
    masked_BT: Tensor | None = None,
) -> Tensor:
    """The features of every layer in one pass: int64 [B, T] to [layers + 1, B, width].

    Entry l is f^l of section 2.4 of Chen et al. 2020: n^l, the output of the first normalization of block l, averaged
    over the pixels; the last entry is the output of the final normalization, n^L of section 2.3. The positions of a
    super-resolution model's small image are left out. `masked_BT` is for masked models only: the paper also masks the
    inputs of the probe, as in training (section 4.6).

    Raises IgptError for a class-conditional model, whose activations contain the class it is given.
    """
    check_has_features(model.config)
    pixels = slice(model.config.low_positions, None)
    pooled = []
    with half_on_gpu(tokens_BT.device):
        x_BSC = model.inputs(tokens_BT, condition, masked_BT)
        for block in model.layers:
            pooled.append(block.attention_norm(x_BSC)[:, pixels].float().mean(1))
            x_BSC = block(x_BSC)
        pooled.append(model.norm(x_BSC)[:, pixels].float().mean(1))
    return torch.stack(pooled)


def image_features(bundle: ModelBundle, tokens_BT: Tensor) -> Tensor:
    """The features of every layer for any number of images, in batches: int64 [B, T] to [layers + 1, B, width].

    A super-resolution model is given the small versions of the images. Otherwise like `pooled_features`.
    """
    parts = []
    for part_BT in tokens_BT.split(BATCH):
        low_BP = None
        if bundle.model.config.low_resolution is not None:
            low_BP = torch.from_numpy(bundle.shrink(bundle.pictures(part_BT.cpu().numpy()))).to(part_BT.device)
        parts.append(pooled_features(bundle.model, part_BT, condition=Condition(low_BP=low_BP)))
    return torch.cat(parts, 1)


def check_has_features(config: ModelConfig) -> None:
    """Raise IgptError for a class-conditional model."""
    if config.classes is not None:
        raise IgptError(
            "a class-conditional model gets the class of an image as input, so its features cannot be probed; use a "
            "model that was trained without class_conditional"
        )


def untrained(model: ImageGPT, seed: int) -> ImageGPT:
    """The same network with new initial weights, the baseline of the probe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageGPT(model.config).eval()
