"""Augmenting tokens is augmenting pixels and quantizing them."""

import numpy as np
import pytest
import torch

from igpt_model.data.augment import augment, every_augmentation, start_offsets
from pipeline.images import palette
from tests.igpt_model.conftest import SIDE


@pytest.mark.parametrize(("flip", "padding"), [(True, 0), (False, 2), (True, 4), (True, 7)])
def test_augmenting_tokens_is_augmenting_pixels_and_quantizing(
    pictures: np.ndarray, table: np.ndarray, flip: bool, padding: int
) -> None:
    tokens, numbers = sequences(pictures, table), torch.arange(1000, 1000 + len(pictures))
    augmented = augment(tokens, numbers, seed=7, flip=flip, crop_padding=padding)
    # The same random choices, applied to an image whose tokens are its positions.
    positions = augment(
        torch.arange(SIDE**2).expand(len(pictures), -1), numbers, seed=7, flip=flip, crop_padding=padding
    )
    flipped, offsets = 0, set()
    for picture, position, tokens_T in zip(pictures, positions.view(-1, SIDE, SIDE), augmented, strict=True):
        padded = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        padded_positions = np.pad(np.arange(SIDE**2).reshape(SIDE, SIDE), padding, mode="reflect")
        candidates = {}
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                for mirrored in (False, True)[: 1 + flip]:
                    window = padded_positions[top : top + SIDE, left : left + SIDE][:, :: -1 if mirrored else 1]
                    if np.array_equal(window, position.numpy()):
                        candidates[(top, left, mirrored)] = window
        ((top, left, mirrored),) = candidates
        pixels = padded[top : top + SIDE, left : left + SIDE][:, :: -1 if mirrored else 1]
        assert np.array_equal(palette.quantize(pixels, table).reshape(-1), tokens_T.numpy())
        flipped += mirrored
        offsets.add((top, left))
    assert not flip or 0.3 < flipped / len(pictures) < 0.7
    assert len(offsets) > min((2 * padding + 1) ** 2, len(pictures)) // 2


@pytest.mark.parametrize(("flip", "padding"), [(False, 0), (True, 0), (False, 1), (True, 2)])
def test_every_augmentation_is_what_augment_draws_from(
    pictures: np.ndarray, table: np.ndarray, flip: bool, padding: int
) -> None:
    tokens = sequences(pictures[:2], table)
    every = every_augmentation(tokens, flip=flip, crop_padding=padding)
    assert every.shape == ((1 + flip) * (2 * padding + 1) ** 2, *tokens.shape)
    for number in range(2):
        possible = {tuple(way.tolist()) for way in every[:, number]}
        assert tuple(tokens[number].tolist()) in possible
        many = tokens[number].expand(1000, -1)
        drawn = augment(many, torch.arange(1000), seed=3, flip=flip, crop_padding=padding)
        assert {tuple(way.tolist()) for way in drawn} == possible


@pytest.mark.parametrize(("flip", "padding"), [(True, 0), (False, 1), (True, 2)])
def test_a_model_is_told_each_augmentation_by_an_offset_of_its_own(flip: bool, padding: int) -> None:
    numbers = torch.arange(2000)
    positions = torch.arange(SIDE**2).expand(len(numbers), -1)
    made = augment(positions, numbers, seed=7, flip=flip, crop_padding=padding)
    offsets = start_offsets(numbers, 512, seed=7, flip=flip, crop_padding=padding)
    ways = {tuple(way.tolist()): offset for way, offset in zip(made, offsets, strict=True)}
    for way, offset in zip(made, offsets, strict=True):
        assert torch.equal(ways[tuple(way.tolist())], offset)
    assert len({tuple(offset.tolist()) for offset in ways.values()}) == len(ways) == (1 + flip) * (2 * padding + 1) ** 2
    assert not ways[tuple(range(SIDE**2))].any(), "an image as it is has the start vector itself"
    others = torch.stack([offset for offset in ways.values() if offset.any()])
    assert 0.25 < others.std() < 0.35


def sequences(pictures: np.ndarray, table: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(palette.quantize(pictures, table).reshape(len(pictures), -1).astype(np.int64))
