"""Converts weights of other implementations: checks names, shapes and types first, then reads a tensor at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.errors import IgptError

# Normalizations of a block: name in ImageGPT and name in OpenAI's code, which Hugging Face kept.
NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
# float64 as far as float32 holds its values exactly.
_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of a file, whose values are read when they are needed."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where a tensor of a foreign model goes."""

    source: str
    """Its name in the foreign model."""
    shape: tuple[int, ...]
    """Its shape there."""
    target: str | None
    """The parameter of ImageGPT that it becomes, or a part of it; None: a bias, which ImageGPT does not have."""
    source_rows: tuple[int, int] | None = None
    """The first row to take and the one after the last, of a matrix whose rows are the last dimension; None: all."""
    target_rows: tuple[int, int] | None = None
    """Likewise the rows of the parameter that it becomes."""
    transposed: bool = False


def convert(
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    pieces: Iterable[Piece],
    palette_K3: np.ndarray,
    origin: str,
) -> ModelBundle:
    """Build a model from foreign tensors. Errors name `origin`, the file or folder.

    All biases may be missing: ImageGPT has none. Raises IgptError when any other tensor is missing, unknown, of another
    shape or no float, when the palette has another size, or the memory of this machine does not suffice: before a value
    is read. Also for a bias that is not zero, and for values that are not finite or that float32 does not hold.
    """
    parts = check(stored, pieces, origin)
    if len(palette_K3) != config.colours:
        raise IgptError(
            f"{origin}: the model has {config.colours} colours and the palette {len(palette_K3)}: "
            "give the model's own palette"
        )
    import psutil  # noqa: PLC0415 (not on a machine that only trains, which imports this module)

    needed, free = 4 * config.parameters, psutil.virtual_memory().available
    if needed > free:
        raise IgptError(
            f"{origin}: the model takes {needed / _GIB:.1f} GiB of memory and {free / _GIB:.1f} GiB are free; convert "
            "it on a larger machine"
        )
    with torch.device("meta"):
        model = ImageGPT(config)
    model.to_empty(device="cpu")
    parameters = model.state_dict()
    for piece in parts:
        if piece.source in stored:
            _put(stored[piece.source].read(), piece, parameters, origin)
    return ModelBundle(model=model.eval(), palette_K3=palette_K3, classes=())


def check(stored: Mapping[str, StoredTensor], pieces: Iterable[Piece], origin: str) -> list[Piece]:
    """Raise IgptError unless the tensors of a file are those of the pieces, which are returned; reads no values.

    Stops at the first that is missing: a config may claim any number of layers.
    """
    parts: list[Piece] = []
    for piece in pieces:
        parts.append(piece)
        tensor = stored.get(piece.source)
        if tensor is None:
            if piece.target is None:
                continue
            raise IgptError(f"{origin}: {piece.source} is missing")
        if tensor.shape != piece.shape:
            raise IgptError(
                f"{origin}: {piece.source} has the shape {list(tensor.shape)}, expected {list(piece.shape)}"
            )
        if tensor.dtype not in _FLOATS:
            raise IgptError(f"{origin}: {piece.source} is {_name(tensor.dtype)}: give float32, float16 or bfloat16")
    biases = [piece.source for piece in parts if piece.target is None]
    missing = [bias for bias in biases if bias not in stored]
    if missing and len(missing) < len(biases):
        raise IgptError(f"{origin}: {missing[0]} is missing")
    if unknown := set(stored) - {piece.source for piece in parts}:
        raise IgptError(f"{origin}: {min(unknown)} is not a weight of an Image GPT; give a file of one")
    return parts


def _put(tensor: Tensor, piece: Piece, parameters: Mapping[str, Tensor], origin: str) -> None:
    """Copy a tensor into the parameter that it becomes."""
    if not torch.isfinite(tensor).all():
        raise IgptError(f"{origin}: {piece.source} has values that are not finite; the file is damaged")
    if piece.target is None:
        if tensor.any():
            raise IgptError(
                f"{origin}: {piece.source} is not zero (largest {tensor.abs().max():.3g}); only models without biases "
                "can be converted"
            )
        return
    if tensor.dtype == torch.float64 and not torch.equal(tensor.float().double(), tensor):
        raise IgptError(
            f"{origin}: {piece.source} has float64 values that float32 does not hold; round them to float32"
        )
    matrix = tensor.flatten(0, -2) if tensor.ndim > 2 else tensor
    rows = matrix[slice(*(piece.source_rows or (None,)))]
    target = parameters[piece.target][slice(*(piece.target_rows or (None,)))]
    target.copy_((rows.T if piece.transposed else rows).reshape(target.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def side_of(positions: int, origin: str) -> int:
    """The side of a square image with `positions` pixels. Raises IgptError when the number is not a square."""
    side = round(positions**0.5)
    if side**2 != positions:
        raise IgptError(f"{origin}: {positions} positions are not the pixels of a square image")
    return side
