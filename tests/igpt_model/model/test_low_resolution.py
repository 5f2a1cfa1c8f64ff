"""A small version made of tokens is the small version of the picture, quantized again."""

import numpy as np
import torch
from PIL import Image

from igpt_model.model.low_resolution import Reducer
from pipeline.images import palette
from pipeline.images.decode import centre_square
from tests.igpt_model.conftest import SIDE
from tests.igpt_model.data.test_augment import sequences


def test_small_versions_of_tokens_equal_those_of_pictures(
    pictures: np.ndarray, colours: np.ndarray, table: np.ndarray
) -> None:
    tokens = sequences(pictures, table)
    seen = palette.to_pixels(tokens.numpy().reshape(-1, SIDE, SIDE), colours)
    for low in (2, 4, 8):
        reduce = Reducer(colours, resolution=SIDE, low_resolution=low, device=torch.device("cpu"))
        small = np.stack([centre_square(Image.fromarray(picture), low) for picture in seen])
        assert torch.equal(reduce(tokens), sequences(small, table))


def test_small_versions_by_thirds(photos: np.ndarray, colours: np.ndarray, table: np.ndarray) -> None:
    pictures = np.stack([centre_square(Image.fromarray(photo), 48) for photo in photos[:20]])
    tokens = sequences(pictures, table)
    seen = palette.to_pixels(tokens.numpy().reshape(-1, 48, 48), colours)
    for low in (8, 16):
        reduce = Reducer(colours, resolution=48, low_resolution=low, device=torch.device("cpu"))
        small = np.stack([centre_square(Image.fromarray(picture), low) for picture in seen])
        assert torch.equal(reduce(tokens), sequences(small, table))
