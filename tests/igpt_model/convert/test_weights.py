"""Weights of other implementations: all are used, each has its shape, and the model owns its copies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from igpt_model.convert.weights import ForeignWeights, side_of
from pipeline.errors import IgptError
from tests.igpt_model.convert.test_hugging_face import colours_of
from tests.igpt_model.model.test_network import SMALL, make


def test_a_weight_is_taken_once_and_has_its_shape() -> None:
    weights = ForeignWeights({"wte": torch.ones(3, 4)}, "model.npz")
    assert "wte" in weights
    with pytest.raises(IgptError, match=r"^model\.npz: wte has the shape \[3, 4\], expected \[4, 3\]$"):
        ForeignWeights({"wte": torch.ones(3, 4)}, "model.npz").take("wte", 4, 3)
    assert torch.equal(weights.take("wte", 3, 4), torch.ones(3, 4))
    assert "wte" not in weights
    with pytest.raises(IgptError, match=r"^model\.npz: wte is missing$"):
        weights.take("wte", 3, 4)


def test_a_model_is_made_of_copies_in_float32() -> None:
    given = {name: tensor.detach().double() for name, tensor in make(SMALL).state_dict().items()}
    bundle = ForeignWeights({}, "here").assemble(SMALL, given, colours_of(11))
    assert all(torch.equal(tensor, given[name].float()) for name, tensor in bundle.model.state_dict().items())
    assert {tensor.dtype for tensor in bundle.model.state_dict().values()} == {torch.float32}
    plain = {name: tensor.float() for name, tensor in given.items()}
    bundle = ForeignWeights({}, "here").assemble(SMALL, plain, colours_of(11))
    plain["positions"].zero_()
    assert bundle.model.positions.detach().any()


def test_what_is_left_over_or_does_not_fit_is_refused() -> None:
    weights = make(SMALL).state_dict()
    with pytest.raises(IgptError, match="here: bias is not a weight of an Image GPT"):
        ForeignWeights({"bias": torch.ones(1)}, "here").assemble(SMALL, weights, colours_of(11))
    with pytest.raises(IgptError, match="the model has 11 colours and the palette 12"):
        ForeignWeights({}, "here").assemble(SMALL, weights, np.zeros((12, 3), np.float32))
    with pytest.raises(RuntimeError):
        ForeignWeights({}, "here").assemble(replace(SMALL, layers=4), weights, colours_of(11))


def test_images_are_square() -> None:
    assert [side_of(count, "here") for count in (1, 16, 1024)] == [1, 4, 32]
    for count in (2, 60, 1023):
        with pytest.raises(IgptError, match=f"here: {count} positions are not the pixels of a square image"):
            side_of(count, "here")
