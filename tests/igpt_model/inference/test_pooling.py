"""Shapes of pooled features, and how many images fit into memory at once."""

import pytest

from igpt_model.inference.pooling import checked, images_at_once, numbers_of, shape_of
from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError

SMALL = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16)
LARGE = ModelConfig(layers=48, width=1536, heads=16, resolution=32, colours=512)


@pytest.mark.parametrize(
    ("pooling", "shape", "numbers", "of_all_large_layers"),
    [("mean", (32,), 32, 128), ("rows", (8, 32), 256, 27), ("none", (8, 8, 32), 2048, 1)],
)
def test_shapes_and_batches(pooling: str, shape: tuple, numbers: int, of_all_large_layers: int) -> None:
    assert shape_of(SMALL, checked(pooling)) == shape and numbers_of(SMALL, checked(pooling)) == numbers
    assert images_at_once(SMALL, checked(pooling), 3) == 128
    assert images_at_once(LARGE, checked(pooling), 49) == of_all_large_layers


@pytest.mark.parametrize("text", ["median", "Mean", "", None, 3])
def test_another_pooling_is_one_line(text: object) -> None:
    with pytest.raises(IgptError, match="it must be one of mean, rows, none"):
        checked(text)
