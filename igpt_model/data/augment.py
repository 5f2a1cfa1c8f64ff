"""Augmentation of palette tokens on the device: flips and crops only move pixels, so they commute with quantization."""

from itertools import product

import torch
from torch import Tensor

from igpt_model.model.randomness import uniform


def augment(tokens_BT: Tensor, numbers_B: Tensor, *, seed: int, flip: bool, crop_padding: int) -> Tensor:
    """Random left-right flips, and random crops after reflection padding by `crop_padding` pixels.

    As for CIFAR-10 in section 3.1 of Chen et al. 2020. The augmentation of an image is a function of the seed and its
    number. Tokens are int64 [B, T], numbers int64 [B]; returns int64 [B, T].
    """
    if not flip and not crop_padding:
        return tokens_BT
    drawn_B3 = uniform(seed, "augment", numbers_B, 3)
    top_B, left_B = ((drawn_B3[:, :2] * (2 * crop_padding + 1)).long() - crop_padding).unbind(1)
    return _moved(tokens_BT, top_B, left_B, (drawn_B3[:, 2] < 0.5) & flip)


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
