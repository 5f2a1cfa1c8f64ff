"""OpenAI's models, from the variables of their TensorFlow checkpoints in an .npz file. Needs no TensorFlow.

Names and shapes are those of OpenAI's code (github.com/openai/image-gpt, src/model.py), below `model/`; L is a layer,
C the width, H the heads, K the colours, T the pixels:

    ours                                        OpenAI
    tokens.weight [K, C]                        wte [K, C]
    start [C]                                   sos [C], which a masked (BERT) model has not
    positions [T, C]                            wpe [T, C]
    blocks.L.attention_norm.weight [C]          hL/ln_1/g [C]
    blocks.L.attention.qkv.weight [3C, C]       hL/attn/q_proj, k_proj, v_proj [H, C/H, C] each, below each other
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
    """Read OpenAI's variables from an .npz file, one array each under its TensorFlow name, as `model/h0/attn/q_proj`.

    What is not below `model/`, and the variables of the optimizer and the classifier (`model/clf`), are left out. A
    file without `model/sos` is a masked model. Raises IgptError for a file that lacks a variable or has others.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.removesuffix(":0"): file[name] for name in file.files}
    except FileNotFoundError:
        raise IgptError(f"{path}: nothing is there; give an .npz file of OpenAI's variables") from None
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
                f"{path}: there is no model/{name} of {dimensions} dimensions; name each array as its variable in "
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
    theirs = ForeignWeights(kept, f"{path}: model")
    ours = {
        "tokens.weight": theirs.take("wte", colours, width),
        "positions": theirs.take("wpe", config.positions, width),
        "norm.weight": theirs.take("ln_f/g", width),
        "head.weight": theirs.take("wtet", colours, width),
    }
    if "sos" in theirs:
        ours["start"] = theirs.take("sos", width)
    projection = (heads, width // heads, width)
    for layer in range(config.layers):
        here, there = f"blocks.{layer}", f"h{layer}"
        for name, their_name in NORMS.items():
            ours[f"{here}.{name}.weight"] = theirs.take(f"{there}/{their_name}/g", width)
        parts = [theirs.take(f"{there}/attn/{which}_proj", *projection) for which in "qkv"]
        ours[f"{here}.attention.qkv.weight"] = torch.cat([part.reshape(width, width) for part in parts])
        out = theirs.take(f"{there}/attn/c_proj", *projection)
        ours[f"{here}.attention.out.weight"] = out.reshape(width, width).T
        ours[f"{here}.mlp_in.weight"] = theirs.take(f"{there}/mlp/c_fc/w", width, 4 * width).T
        ours[f"{here}.mlp_out.weight"] = theirs.take(f"{there}/mlp/c_proj/w", 4 * width, width).T
    return theirs.assemble(config, ours, palette_K3)
