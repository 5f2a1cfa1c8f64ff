"""Augmentation of palette tokens on the device: flips and crops only move pixels, so they commute with quantization."""

from itertools import product

import torch
from torch import Tensor

from igpt_model.model.randomness import uniform

_OFFSET = 0.3  # standard deviation of the offsets that tell an augmentation


def augment(tokens_BT: Tensor, numbers_B: Tensor, *, seed: int, flip: bool, crop_padding: int) -> Tensor:
    """Random left-right flips, and random crops after reflection padding by `crop_padding` pixels.

    As for CIFAR-10 in section 3.1 of Chen et al. 2020. The augmentation of an image is a function of the seed and its
    number. Tokens are int64 [B, T], numbers int64 [B]; returns int64 [B, T].
    """
    if not flip and not crop_padding:
        return tokens_BT
    return _moved(tokens_BT, *_drawn(numbers_B, seed=seed, flip=flip, crop_padding=crop_padding))


def start_offsets(numbers_B: Tensor, width: int, *, seed: int, flip: bool, crop_padding: int) -> Tensor:
    """What tells a model how `augment` changes images with these numbers: float32 [B, width], 0 for one left as it is.

    Added to the start vector; each way of cropping and mirroring has an offset of its own, which is drawn once and not
    learned. From distribution augmentation (Jun et al. 2020, "Distribution Augmentation for Generative Modeling").
    """
    top_B, left_B, mirrored_B = _drawn(numbers_B, seed=seed, flip=flip, crop_padding=crop_padding)
    way_B = 2 * (top_B * (2 * crop_padding + 1) + left_B) + mirrored_B.long()
    drawn_BC = uniform(seed, "augmentation", way_B, width)
    return torch.where((way_B == 0)[:, None], 0.0, (drawn_BC - 0.5) * (_OFFSET * 12**0.5))


def _drawn(numbers_B: Tensor, *, seed: int, flip: bool, crop_padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first row and column of the window of each image, int64 [B], and whether it is mirrored, bool [B]."""
    drawn_B3 = uniform(seed, "augment", numbers_B, 3)
    top_B, left_B = ((drawn_B3[:, :2] * (2 * crop_padding + 1)).long() - crop_padding).unbind(1)
    return top_B, left_B, (drawn_B3[:, 2] < 0.5) & flip


def every_augmentation(tokens_BT: Tensor, *, flip: bool, crop_padding: int) -> Tensor:
    """Everything that `augment` can make of images: int64 [B, T] to int64 [V, B, T], the images themselves among it."""
    offsets = range(-crop_padding, crop_padding + 1)
    made = []
    for top, left, mirrored in product(offsets, offsets, (False, True)[: 1 + flip]):
        choice_B = tokens_BT.new_zeros(len(tokens_BT))
        made.append(_moved(tokens_BT, choice_B + top, choice_B + left, choice_B.bool() | mirrored))
    return torch.stack(made)


def _moved(tokens_BT: Tensor, top_B: Tensor, left_B: Tensor, mirrored_B: Tensor) -> Tensor:
    """The windows of images that begin at these rows and columns (below 0 and beyond the end: reflected), mirrored."""
    B, T = tokens_BT.shape
    side = round(T**0.5)
    steps = torch.arange(side, device=tokens_BT.device)
    rows_BH = _reflect(top_B[:, None] + steps, side)
    columns_BW = _reflect(left_B[:, None] + steps, side)
    columns_BW = torch.where(mirrored_B[:, None], columns_BW.flip(1), columns_BW)
    tokens_BHW = tokens_BT.view(B, side, side)
    images = torch.arange(B, device=tokens_BT.device)[:, None, None]
    return tokens_BHW[images, rows_BH[:, :, None], columns_BW[:, None, :]].view(B, T)


def _reflect(coordinates: Tensor, side: int) -> Tensor:
    """Reflect coordinates into 0 .. side - 1, without repeating the border pixel."""
    return (side - 1) - (side - 1 - coordinates.abs()).abs()
