"""The step that a GPU replays samples the same pixels as ordinary steps, for every kind of model and known pixels."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from igpt_model.inference import sample
from igpt_model.inference.fixed_step import _lengths, fill
from igpt_model.inference.sample import Drawing
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import Condition
from igpt_model.model.randomness import uniform
from tests.igpt_model.model.test_network import BY_CLASS, SMALL, UPSCALING, make, some_tokens


@pytest.mark.parametrize("config", [SMALL, BY_CLASS, UPSCALING, replace(SMALL, resolution=9)])
@pytest.mark.parametrize("known", [0, 1, 7, 15, 16])
@pytest.mark.parametrize("drawing", [Drawing(seed=3), Drawing(top_k=4, top_p=0.8), Drawing(temperature=0)])
def test_the_fixed_step_draws_what_the_plain_steps_draw(config: ModelConfig, known: int, drawing: Drawing) -> None:
    model, positions = make(config), config.positions
    condition = Condition(
        labels_B=torch.arange(5) % 5 if config.classes else None,
        low_BP=some_tokens(5, 4) if config.low_resolution else None,
    )
    tokens_BT, known_BT = some_tokens(5, positions), (torch.arange(positions) < known).repeat(5, 1)
    known_BT[2, positions // 2] = True
    drawn_BT = uniform(drawing.seed, "draw", torch.arange(5), positions)
    told: list[int] = []
    fill(model, tokens_BT, known_BT, condition, drawn_BT, partial(sample._choose, drawing=drawing), told.append)
    expected = sample.complete(model, some_tokens(5, positions), known_BT, drawing, condition=condition)
    assert torch.equal(tokens_BT, expected)
    assert told == ([64] if config.resolution == 9 else [])


def test_a_few_lengths_cover_every_position() -> None:
    assert _lengths(1024) == [256, 512, 768, 1024]
    assert _lengths(16) == [8, 16]
    assert _lengths(1088) == [272, 544, 816, 1088]
    for sequence in range(1, 200):
        lengths = _lengths(sequence)
        assert lengths[-1] == sequence and len(lengths) <= 4 and lengths == sorted(set(lengths))
