"""The number of images of a pass: no tensor that the C library would give back to the system, and never none."""

import pytest
import torch

from igpt_model.inference.passes import images_per_pass
from igpt_model.model.config import ModelConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("width", "resolution", "colours", "logits", "images"),
    [
        (64, 8, 16, False, 128),
        (64, 8, 512, True, 128),
        (256, 32, 512, False, 4),
        (512, 32, 512, False, 2),
        (64, 32, 512, False, 16),
        (64, 32, 512, True, 8),
        (3072, 32, 512, False, 1),  # a tensor is larger by itself
        (64, 64, 8192, True, 1),
    ],
)
def test_a_pass_on_a_cpu_has_no_tensor_of_more_than_16_mib(
    width: int, resolution: int, colours: int, logits: bool, images: int
) -> None:
    config = ModelConfig(layers=2, width=width, heads=4, resolution=resolution, colours=colours)
    assert images_per_pass(config, CPU, logits=logits) == images


@pytest.mark.parametrize(("logits", "images"), [(False, 128), (True, 64)])
def test_a_gpu_gets_large_passes(logits: bool, images: int) -> None:
    config = ModelConfig(layers=2, width=512, heads=4, resolution=32, colours=512)
    assert images_per_pass(config, GPU, logits=logits) == images


def test_a_small_image_counts_as_part_of_the_sequence() -> None:
    config = ModelConfig(layers=2, width=256, heads=4, resolution=32, colours=512, low_resolution=16)
    assert images_per_pass(config, CPU) == 3
