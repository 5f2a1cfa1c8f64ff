"""Features of images: activations of each layer, averaged over an image, over its rows, or for every pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from igpt_model.inference.passes import images_per_pass
from igpt_model.inference.pooling import Pooling
from igpt_model.inference.precision import half_on_gpu
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import UNCONDITIONAL, Condition, ImageGPT
from pipeline.errors import IgptError


@torch.inference_mode()
def pooled_features(
    model: ImageGPT,
    tokens_BT: Tensor,
    *,
    condition: Condition = UNCONDITIONAL,
    masked_BT: Tensor | None = None,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "mean",
) -> Tensor:
    """The features of layers (None: of all) in one pass: int64 [B, T] to float32 [layers, B, ...] as `shape_of` says.

    Entry l is f^l of section 2.4 of Chen et al. 2020: n^l, the output of the first normalization of block l, averaged
    over the pixels; the last entry is the output of the final normalization, n^L of section 2.3. Blocks behind the last
    of the layers are not computed. The positions of a super-resolution model's small image are left out. `masked_BT` is
    for masked models only: the paper also masks the inputs of the probe, as in training (section 4.6).

    Without pooling, the vector at [y, x] is that of the position which predicts this pixel: an autoregressive model has
    computed it from the pixels before it in raster order, not from the pixel itself; a masked model from all pixels.

    Raises IgptError for a class-conditional model, whose activations contain the class it is given.
    """
    check_has_features(model.config)
    pixels = slice(model.config.low_positions, None)
    last = model.config.layers
    wanted = list(range(last + 1)) if layers is None else list(layers)
    pooled = {}
    with half_on_gpu(tokens_BT.device):
        x_BSC = model.inputs(tokens_BT, condition, masked_BT)
        for layer in range(max(wanted) + 1):
            norm = model.norm if layer == last else model.layers[layer].attention_norm
            if layer in wanted:
                pooled[layer] = _pool(norm(x_BSC)[:, pixels].float(), model.config.resolution, pooling)
            if layer < max(wanted):
                x_BSC = model.layers[layer](x_BSC)
    return torch.stack([pooled[layer] for layer in wanted])


def _pool(x_BTC: Tensor, side: int, pooling: Pooling) -> Tensor:
    if pooling == "mean":
        return x_BTC.mean(1)
    x_BHWC = x_BTC.unflatten(1, (side, side))
    return x_BHWC.mean(2) if pooling == "rows" else x_BHWC


def image_features(
    bundle: ModelBundle, tokens_BT: Tensor, *, layers: Sequence[int] | None = None, pooling: Pooling = "mean"
) -> Tensor:
    """The features of layers for any number of images, in batches: int64 [B, T] to [layers, B, ...].

    A super-resolution model is given the small versions of the images. Otherwise like `pooled_features`.
    """
    parts = []
    for part_BT in tokens_BT.split(images_per_pass(bundle.model.config, tokens_BT.device)):
        low_BP = None
        if bundle.model.config.low_resolution is not None:
            low_BP = torch.from_numpy(bundle.shrink(bundle.pictures(part_BT.cpu().numpy()))).to(part_BT.device)
        condition = Condition(low_BP=low_BP)
        parts.append(pooled_features(bundle.model, part_BT, condition=condition, layers=layers, pooling=pooling))
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
