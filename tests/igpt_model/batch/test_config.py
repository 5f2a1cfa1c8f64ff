"""The settings of a batch are checked where they are given."""

import pytest

from igpt_model.batch.config import BatchConfig
from pipeline.errors import IgptError


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pooling": "median"}, "pooling is 'median'"),
        ({"layers": [-1]}, "layers is -1|layers.* is -1"),
        ({"split": "val"}, "split is 'val'"),
        ({"part_images": 0}, "part_images is 0"),
        ({"tasks_per_gpu": 0}, "tasks_per_gpu is 0"),
        ({"label": -1}, "label is -1"),
        ({"layer": 3}, "layer"),
    ],
)
def test_what_cannot_be_is_one_line(fields: dict, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        BatchConfig.from_fields(**fields)


def test_the_fields_of_a_command_line() -> None:
    config = BatchConfig.from_fields(layers=[1, 12], pooling="rows", split="test")
    assert (config.layers, config.pooling, config.split) == ((1, 12), "rows", "test")
