"""Weights of other implementations: all are used, each has its shape, and the model owns its copies."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from igpt_model.convert.weights import Piece, StoredTensor, check, convert, side_of
from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError
from tests.igpt_model.convert.test_hugging_face import colours_of
from tests.igpt_model.model.test_network import SMALL, make


def stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=partial(tensor.view, tensor.shape))
        for name, tensor in tensors.items()
    }


def same_names(config: ModelConfig) -> list[Piece]:
    """The pieces of a model whose weights have our names already."""
    return [
        Piece(source=name, shape=tuple(tensor.shape), target=name) for name, tensor in make(config).state_dict().items()
    ]


def unread() -> Tensor:
    raise AssertionError("values are read before names and shapes are checked")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_is_made_of_copies_in_float32(dtype: torch.dtype) -> None:
    given = {name: tensor.detach().to(dtype) for name, tensor in make(SMALL).state_dict().items()}
    bundle = convert(SMALL, stored(given), same_names(SMALL), colours_of(11), "here")
    assert all(torch.equal(tensor, given[name].float()) for name, tensor in bundle.model.state_dict().items())
    assert {tensor.dtype for tensor in bundle.model.state_dict().values()} == {torch.float32}
    given["positions"].zero_()
    assert bundle.model.positions.detach().any()


def test_parts_of_a_tensor_go_where_they_belong() -> None:
    """A part of the rows, of either side; a matrix the other way round; heads in front."""
    state = make(SMALL).state_dict()
    width, name = SMALL.width, "blocks.0.attention.qkv.weight"
    heads = state[name].reshape(3, 2, width // 2, width)
    given = {key: tensor for key, tensor in state.items() if key not in (name, "start", "tokens.weight")}
    given |= {f"{part}_proj": heads[number] for number, part in enumerate("qkv")}
    given["wte"] = torch.cat([state["tokens.weight"], state["start"][None]])
    given["head.weight"] = given["head.weight"].T
    pieces = [piece for piece in same_names(SMALL) if piece.source in given and piece.source != "head.weight"]
    pieces += [
        Piece(source="head.weight", shape=(width, 11), target="head.weight", transposed=True),
        Piece(source="wte", shape=(12, width), target="tokens.weight", source_rows=(0, 11)),
        Piece(source="wte", shape=(12, width), target="start", source_rows=(11, 12)),
    ]
    for number, part in enumerate("qkv"):
        rows = (number * width, (number + 1) * width)
        pieces.append(Piece(source=f"{part}_proj", shape=(2, width // 2, width), target=name, target_rows=rows))
    bundle = convert(SMALL, stored(given), pieces, colours_of(11), "here")
    assert all(torch.equal(tensor, state[key]) for key, tensor in bundle.model.state_dict().items())


REFUSED = {
    "a missing tensor": ({"norm.weight": None}, "norm.weight is missing"),
    "one too many": ({"bias": torch.ones(1)}, "bias is not a weight of an Image GPT"),
    "another shape": ({"norm.weight": torch.ones(3)}, r"norm.weight has the shape \[3\], expected \[\d+\]"),
    "integers": ({"norm.weight": torch.ones(SMALL.width, dtype=torch.int8)}, "norm.weight is int8: give float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_before_a_value_is_read(name: str) -> None:
    change, expected = REFUSED[name]
    given = {**make(SMALL).state_dict(), **change}
    tensors = stored({key: tensor for key, tensor in given.items() if tensor is not None})
    tensors = {key: replace(tensor, read=unread) for key, tensor in tensors.items()}
    with pytest.raises(IgptError, match=f"^here: {expected}"):
        convert(SMALL, tensors, same_names(SMALL), colours_of(11), "here")


def test_another_palette_or_too_little_memory_is_refused_before_a_value_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = {key: replace(tensor, read=unread) for key, tensor in stored(make(SMALL).state_dict()).items()}
    with pytest.raises(IgptError, match="the model has 11 colours and the palette 12"):
        convert(SMALL, tensors, same_names(SMALL), np.zeros((12, 3), np.float32), "here")

    class Full:
        available = 4 * SMALL.parameters - 1

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Full)
    with pytest.raises(IgptError, match=r"the model takes 0\.0 GiB of memory and 0\.0 GiB are free"):
        convert(SMALL, tensors, same_names(SMALL), colours_of(11), "here")


def test_a_config_that_claims_any_number_of_layers_costs_nothing() -> None:
    claimed = (Piece(source=f"h.{layer}", shape=(1,), target="start") for layer in range(10**12))
    with pytest.raises(IgptError, match=r"here: h\.3 is missing"):
        check(stored({f"h.{layer}": torch.ones(1) for layer in range(3)}), claimed, "here")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.full((SMALL.width,), torch.nan), "norm.weight has values that are not finite"),
        (torch.full((SMALL.width,), torch.inf), "norm.weight has values that are not finite"),
        (torch.full((SMALL.width,), 1 / 3, dtype=torch.float64), "float64 values that float32 does not hold"),
    ],
)
def test_values_that_are_none_or_would_be_rounded_are_refused(values: Tensor, expected: str) -> None:
    tensors = stored({**make(SMALL).state_dict(), "norm.weight": values})
    with pytest.raises(IgptError, match=expected):
        convert(SMALL, tensors, same_names(SMALL), colours_of(11), "here")


@pytest.mark.parametrize(("bias", "refused"), [(None, False), (0.0, False), (-0.5, True)])
def test_a_bias_is_zero_or_all_are_missing(bias: float | None, refused: bool) -> None:
    given = dict(make(SMALL).state_dict())
    if bias is not None:
        given["bias"] = torch.tensor([0.0, bias])
    pieces = [*same_names(SMALL), Piece(source="bias", shape=(2,), target=None)]
    if refused:
        with pytest.raises(IgptError, match=r"here: bias is not zero \(largest 0.5\)"):
            convert(SMALL, stored(given), pieces, colours_of(11), "here")
    else:
        assert convert(SMALL, stored(given), pieces, colours_of(11), "here").model.config == SMALL


def test_images_are_square() -> None:
    assert [side_of(count, "here") for count in (1, 16, 1024)] == [1, 4, 32]
    for count in (2, 60, 1023):
        with pytest.raises(IgptError, match=f"here: {count} positions are not the pixels of a square image"):
            side_of(count, "here")
