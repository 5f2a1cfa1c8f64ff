"""A model's config: its number of parameters and operations, and the combinations it refuses."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from igpt_model.config import PretrainConfig
from igpt_model.model.config import ModelConfig, Objective, Preset, preset_shape
from igpt_model.model.network import ImageGPT
from pipeline.errors import IgptError
from tests.igpt_model.model.test_network import BY_CLASS, MASKED, SMALL, UPSCALING


@pytest.mark.parametrize(("preset", "millions"), [("igpt-s", 76), ("igpt-m", 455), ("igpt-l", 1362), ("igpt-xl", 6801)])
def test_presets_have_the_published_number_of_parameters(preset: Preset, millions: int) -> None:
    shape = preset_shape(preset)
    for resolution in (32, 48, 64):
        config = ModelConfig(
            layers=shape.layers, width=shape.width, heads=shape.heads, resolution=resolution, colours=512
        )
        with torch.device("meta"):
            model = ImageGPT(config)
            logits = model(torch.zeros(1, resolution**2, dtype=torch.int64))
        assert logits.shape == (1, resolution**2, 512)
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert counted == config.parameters
        if resolution == 32:
            assert counted // 1_000_000 == millions


@pytest.mark.parametrize("config", [SMALL, MASKED, BY_CLASS, UPSCALING, replace(UPSCALING, classes=3)])
def test_the_parameters_of_every_kind_are_counted(config: ModelConfig) -> None:
    assert sum(parameter.numel() for parameter in ImageGPT(config).parameters()) == config.parameters


def test_a_small_image_must_fit_into_the_large_one() -> None:
    for low in (3, 4, 8):
        with pytest.raises(IgptError, match=f"low_resolution is {low}"):
            replace(SMALL, low_resolution=low)
    config = PretrainConfig.from_fields(runs="runs", class_conditional=True)
    with pytest.raises(IgptError, match="the dataset has no classes"):
        config.model.for_images(resolution=32, colours=512, classes=0)


MODEL = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16)


@pytest.mark.parametrize("objective", ["autoregressive", "masked"])
def test_operations_are_those_that_pytorch_counts(objective: Objective) -> None:
    config = replace(MODEL, objective=objective)
    with torch.device("meta"):
        model = ImageGPT(config)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 64, dtype=torch.int64)).sum().backward()
    # PyTorch counts all of causal attention, flops_per_image half of it.
    half = 3 * config.layers * 2 * config.width * config.positions**2 if objective == "autoregressive" else 0
    assert config.flops_per_image == counter.get_total_flops() - half
