"""Reads OpenAI's models from an .npz file with the variables of their TensorFlow checkpoints. Does not need TensorFlow.

Names and shapes are those of OpenAI's code (github.com/openai/image-gpt, src/model.py), without the `model/` prefix; L
is a layer, C the width, H the heads, K the colours, T the pixels:

    ImageGPT                                    OpenAI
    tokens.weight [K, C]                        wte [K, C]
    start [C]                                   sos [C], absent from masked (BERT) models
    positions [T, C]                            wpe [T, C]
    blocks.L.attention_norm.weight [C]          hL/ln_1/g [C]
    blocks.L.attention.qkv.weight [3C, C]       hL/attn/q_proj, k_proj, v_proj [H, C/H, C] each, concatenated
    blocks.L.attention.out.weight [C, C]        hL/attn/c_proj [H, C/H, C], transposed
    blocks.L.mlp_norm.weight [C]                hL/ln_2/g [C]
    blocks.L.mlp_in.weight [4C, C]              hL/mlp/c_fc/w [C, 4C], transposed
    blocks.L.mlp_out.weight [C, 4C]             hL/mlp/c_proj/w [4C, C], transposed
    norm.weight [C]                             ln_f/g [C]
    head.weight [K, C]                          wtet [K, C]
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from igpt_model.convert import stored_tensors
from igpt_model.convert.weights import NORMS, Piece, StoredTensor, convert, side_of
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError


def from_openai(path: Path, palette_K3: np.ndarray) -> ModelBundle:
    """Read OpenAI's variables from an .npz file: one array per variable, under its TensorFlow name (`model/wte`).

    Names that do not start with `model/`, and variables of the optimizer and the classifier (`model/clf`), are ignored.
    A file without `model/sos` holds a masked model. Raises IgptError for a file with missing or unknown variables.
    """
    arrays = {name.removesuffix(":0"): array for name, array in stored_tensors.of_npz(path).items()}
    kept = {
        name.removeprefix("model/"): array
        for name, array in arrays.items()
        if name.startswith("model/") and not name.startswith("model/clf/") and not name.endswith(("/Adam", "/Adam_1"))
    }
    config = _model_config(kept, path)
    return convert(config, kept, pieces(config), palette_K3, f"{path}: model")


def _model_config(arrays: Mapping[str, StoredTensor], path: Path) -> ModelConfig:
    """The shape of the model of these variables."""
    for name, dimensions in (("wte", 2), ("wpe", 2), ("h0/attn/q_proj", 3)):
        if name not in arrays or len(arrays[name].shape) != dimensions:
            raise IgptError(
                f"{path}: there is no model/{name} with {dimensions} dimensions; name each array like its variable in "
                "OpenAI's checkpoint"
            )
    colours, width = arrays["wte"].shape
    return ModelConfig(
        layers=len({name.split("/")[0] for name in arrays if name.startswith("h")}),
        width=width,
        heads=arrays["h0/attn/q_proj"].shape[0],
        resolution=side_of(arrays["wpe"].shape[0], str(path)),
        colours=colours,
        objective="autoregressive" if "sos" in arrays else "masked",
    )


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """What becomes of each of OpenAI's variables in a model of this shape."""
    colours, width, heads = config.colours, config.width, config.heads
    yield Piece(source="wte", shape=(colours, width), target="tokens.weight")
    yield Piece(source="wpe", shape=(config.positions, width), target="positions")
    yield Piece(source="ln_f/g", shape=(width,), target="norm.weight")
    yield Piece(source="wtet", shape=(colours, width), target="head.weight")
    if config.objective == "autoregressive":
        yield Piece(source="sos", shape=(width,), target="start")
    projection = (heads, width // heads, width)
    for layer in range(config.layers):
        block, theirs = f"blocks.{layer}", f"h{layer}"
        for name, their_name in NORMS.items():
            yield Piece(source=f"{theirs}/{their_name}/g", shape=(width,), target=f"{block}.{name}.weight")
        for number, which in enumerate("qkv"):
            yield Piece(
                source=f"{theirs}/attn/{which}_proj",
                shape=projection,
                target=f"{block}.attention.qkv.weight",
                target_rows=(number * width, (number + 1) * width),
            )
        for source, shape, target in (
            ("attn/c_proj", projection, "attention.out"),
            ("mlp/c_fc/w", (width, 4 * width), "mlp_in"),
            ("mlp/c_proj/w", (4 * width, width), "mlp_out"),
        ):
            yield Piece(source=f"{theirs}/{source}", shape=shape, target=f"{block}.{target}.weight", transposed=True)
