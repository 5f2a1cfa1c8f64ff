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

import zipfile
from pathlib import Path

import numpy as np
import torch

from igpt_model.convert.weights import NORMS, ForeignWeights, side_of
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError


def from_openai(path: Path, palette_K3: np.ndarray) -> ModelBundle:
    """Read OpenAI's variables from an .npz file: one array per variable, under its TensorFlow name (`model/wte`).

    Names that do not start with `model/`, and variables of the optimizer and the classifier (`model/clf`), are ignored.
    A file without `model/sos` holds a masked model. Raises IgptError for a file with missing or unknown variables.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.removesuffix(":0"): file[name] for name in file.files}
    except FileNotFoundError:
        raise IgptError(f"{path}: no such file; give an .npz file of OpenAI's variables") from None
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise IgptError(f"{path}: not an .npz file of arrays ({error})") from None
    kept = {
        name.removeprefix("model/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("model/") and not name.startswith("model/clf/") and not name.endswith(("/Adam", "/Adam_1"))
    }
    for name, dimensions in (("wte", 2), ("wpe", 2), ("h0/attn/q_proj", 3)):
        if name not in kept or kept[name].ndim != dimensions:
            raise IgptError(
                f"{path}: there is no model/{name} with {dimensions} dimensions; name each array like its variable in "
                "OpenAI's checkpoint"
            )
    (colours, width), heads = kept["wte"].shape, len(kept["h0/attn/q_proj"])
    config = ModelConfig(
        layers=len({name.split("/")[0] for name in kept if name[0] == "h"}),
        width=width,
        heads=heads,
        resolution=side_of(len(kept["wpe"]), str(path)),
        colours=colours,
        objective="autoregressive" if "sos" in kept else "masked",
    )
    openai_weights = ForeignWeights(kept, f"{path}: model")
    weights = {
        "tokens.weight": openai_weights.take("wte", colours, width),
        "positions": openai_weights.take("wpe", config.positions, width),
        "norm.weight": openai_weights.take("ln_f/g", width),
        "head.weight": openai_weights.take("wtet", colours, width),
    }
    if "sos" in openai_weights:
        weights["start"] = openai_weights.take("sos", width)
    projection = (heads, width // heads, width)
    for layer in range(config.layers):
        block, openai_block = f"blocks.{layer}", f"h{layer}"
        for name, openai_name in NORMS.items():
            weights[f"{block}.{name}.weight"] = openai_weights.take(f"{openai_block}/{openai_name}/g", width)
        parts = [openai_weights.take(f"{openai_block}/attn/{which}_proj", *projection) for which in "qkv"]
        weights[f"{block}.attention.qkv.weight"] = torch.cat([part.reshape(width, width) for part in parts])
        out = openai_weights.take(f"{openai_block}/attn/c_proj", *projection)
        weights[f"{block}.attention.out.weight"] = out.reshape(width, width).T
        weights[f"{block}.mlp_in.weight"] = openai_weights.take(f"{openai_block}/mlp/c_fc/w", width, 4 * width).T
        weights[f"{block}.mlp_out.weight"] = openai_weights.take(f"{openai_block}/mlp/c_proj/w", 4 * width, width).T
    return openai_weights.assemble(config, weights, palette_K3)
