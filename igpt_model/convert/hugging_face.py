"""Converts models to and from Hugging Face folders, as written by `save_pretrained`. Does not need transformers.

All Hugging Face names but the last start with `transformer.`; L is a layer, C the width, K the colours, T the pixels:

    ImageGPT                                    Hugging Face
    tokens.weight [K, C], start [C]             wte.weight [K + 1, C]: the start vector is the last row
    positions [T, C]                            wpe.weight [T, C]
    blocks.L.attention_norm.weight [C]          h.L.ln_1.weight [C]
    blocks.L.attention.qkv.weight [3C, C]       h.L.attn.c_attn.weight [C, 3C], transposed
    blocks.L.attention.out.weight [C, C]        h.L.attn.c_proj.weight [C, C], transposed
    blocks.L.mlp_norm.weight [C]                h.L.ln_2.weight [C]
    blocks.L.mlp_in.weight [4C, C]              h.L.mlp.c_fc.weight [C, 4C], transposed
    blocks.L.mlp_out.weight [C, 4C]             h.L.mlp.c_proj.weight [4C, C], transposed
    norm.weight [C]                             ln_f.weight [C]
    head.weight [K, C]                          lm_head.weight [K, C]

Hugging Face's four linear layers have biases, which are zero in OpenAI's models; ImageGPT has no biases.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from igpt_model.convert.weights import NORMS, ForeignWeights, side_of
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError, first_line
from pipeline.images import palette

_LINEAR = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}
# Config fields of Hugging Face that decide the computation: the required value, and the default of a missing field.
_REQUIRED = {
    "model_type": ("imagegpt", None),
    "activation_function": ("quick_gelu", "quick_gelu"),
    "layer_norm_epsilon": (1e-5, 1e-5),
    "scale_attn_weights": (True, True),
    "scale_attn_by_inverse_layer_idx": (False, False),
    "add_cross_attention": (False, False),
}


def to_hugging_face(source: ModelBundle, folder: Path) -> None:
    """Write a folder that `ImageGPTForCausalImageModeling` and `ImageGPTImageProcessor` load with `from_pretrained`.

    Hugging Face's processor resizes bilinearly and does not crop; images of the model's resolution get the same tokens
    as here. Raises IgptError unless the model is autoregressive and unconditional.
    """
    config = source.model.config
    if config.objective == "masked" or config.classes is not None or config.low_resolution is not None:
        raise IgptError(
            "Hugging Face has no masked, class-conditional or super-resolution Image GPT: only an autoregressive one "
            "without conditions can be converted"
        )
    weights = source.model.state_dict()
    hf_weights = {
        "transformer.wte.weight": torch.cat([weights["tokens.weight"], weights["start"][None]]),
        "transformer.wpe.weight": weights["positions"],
        "transformer.ln_f.weight": weights["norm.weight"],
        "lm_head.weight": weights["head.weight"],
    }
    for layer in range(config.layers):
        block, hf_block = f"blocks.{layer}", f"transformer.h.{layer}"
        for name, hf_name in NORMS.items():
            hf_weights[f"{hf_block}.{hf_name}.weight"] = weights[f"{block}.{name}.weight"]
        for name, hf_name in _LINEAR.items():
            weight = weights[f"{block}.{name}.weight"]
            hf_weights[f"{hf_block}.{hf_name}.weight"] = weight.T.contiguous()
            hf_weights[f"{hf_block}.{hf_name}.bias"] = torch.zeros(len(weight))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(hf_weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _hf_config(config))
    side = config.resolution
    processor = {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": source.palette_K3.tolist(),
        "do_color_quantize": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,
        "size": {"height": side, "width": side},
    }
    _write_json(folder / "preprocessor_config.json", processor)


def _hf_config(config: ModelConfig) -> dict[str, object]:
    return {
        **{name: value for name, (value, _) in _REQUIRED.items()},
        "architectures": ["ImageGPTForCausalImageModeling"],
        "vocab_size": config.colours + 1,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def from_hugging_face(folder: Path, palette_K3: np.ndarray | None = None) -> ModelBundle:
    """Read a folder that `save_pretrained` wrote; without `palette_K3`, the palette is that of the image processor.

    Raises IgptError for missing or damaged files, and for a model that differs from the published architecture: nonzero
    biases, another activation or another kind of attention.
    """
    hf_config = _read_json(folder / "config.json")
    for name, (required, default) in _REQUIRED.items():
        value = hf_config.get(name, default)
        if value != required:
            raise IgptError(f"{folder}/config.json: {name} is {value!r}; an Image GPT of the paper has {required!r}")
    config = _model_config(hf_config, folder)
    if palette_K3 is None:
        path = folder / "preprocessor_config.json"
        if not path.exists():
            raise IgptError(f"{folder}: it has no preprocessor_config.json with the palette; give one with --palette")
        palette_K3 = palette.from_bytes(path.read_bytes(), str(path))
    hf_weights = _read_weights(folder)
    embedding = hf_weights.take("transformer.wte.weight", config.colours + 1, config.width)
    weights = {
        "tokens.weight": embedding[:-1],
        "start": embedding[-1],
        "positions": hf_weights.take("transformer.wpe.weight", config.positions, config.width),
        "norm.weight": hf_weights.take("transformer.ln_f.weight", config.width),
        "head.weight": hf_weights.take("lm_head.weight", config.colours, config.width),
    }
    width = config.width
    shapes = {"attention.qkv": (width, 3 * width), "attention.out": (width, width)}
    shapes |= {"mlp_in": (width, 4 * width), "mlp_out": (4 * width, width)}
    for layer in range(config.layers):
        block, hf_block = f"blocks.{layer}", f"transformer.h.{layer}"
        for name, hf_name in NORMS.items():
            weights[f"{block}.{name}.weight"] = hf_weights.take(f"{hf_block}.{hf_name}.weight", width)
        for name, hf_name in _LINEAR.items():
            weights[f"{block}.{name}.weight"] = hf_weights.take(f"{hf_block}.{hf_name}.weight", *shapes[name]).T
            bias = hf_weights.take(f"{hf_block}.{hf_name}.bias", shapes[name][1])
            if bias.any():
                raise IgptError(
                    f"{folder}: {hf_block}.{hf_name}.bias is not zero (largest {bias.abs().max():.3g}); only "
                    "models without biases can be converted"
                )
    return hf_weights.assemble(config, weights, palette_K3)


def _model_config(hf_config: Mapping[str, Any], folder: Path) -> ModelConfig:
    try:
        positions, width = int(hf_config["n_positions"]), int(hf_config["n_embd"])
        if hf_config.get("n_inner") not in (None, 4 * width):
            raise IgptError(
                f"{folder}/config.json: n_inner is {hf_config['n_inner']}; an Image GPT of the paper has {4 * width}"
            )
        return ModelConfig(
            layers=int(hf_config["n_layer"]),
            width=width,
            heads=int(hf_config["n_head"]),
            resolution=side_of(positions, str(folder)),
            colours=int(hf_config["vocab_size"]) - 1,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IgptError(f"{folder}/config.json: not the config of an Image GPT ({error!r})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise IgptError(f"{path.parent}: {path.name} is missing; give a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise IgptError(f"{path}: damaged ({error})") from None
    if not isinstance(value, dict):
        raise IgptError(f"{path}: not a config")
    return value


def _read_weights(folder: Path) -> ForeignWeights:
    """Read the tensors of a folder: one or more safetensors files, or an older .bin file."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    try:
        if (folder / names[0]).exists():
            tensors = {k: v for name in names for k, v in safetensors.torch.load_file(folder / Path(name).name).items()}
        else:
            # weights_only: the unpickler builds tensors and refuses everything else.
            tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        # Older versions of transformers stored the causal mask with the weights.
        masks = (".attn.bias", ".attn.masked_bias")
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(masks)}
        return ForeignWeights(kept, str(folder))
    except FileNotFoundError:
        raise IgptError(f"{folder}: model.safetensors is missing; give a folder that save_pretrained wrote") from None
    except UnpicklingError:
        raise IgptError(
            f"{folder}/pytorch_model.bin: damaged, or it holds objects other than tensors, which are not loaded; "
            "have transformers write the model as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, AttributeError) as error:
        raise IgptError(f"{folder}: damaged weights ({first_line(error)})") from None
