"""Models to and from Hugging Face's folders, as `save_pretrained` writes them. Needs no transformers.

Names below `transformer.`, but for the last; L is a layer, C the width, K the colours, T the pixels:

    ours                                        Hugging Face
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

Their four linear layers have biases, which are zero in OpenAI's models; ours have none.
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
from pipeline.images import palette as palettes

_LINEAR = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}
# What of a Hugging Face config must be so for the mathematics to be ours, and what it is without being said.
_REQUIRED = {
    "model_type": ("imagegpt", None),
    "activation_function": ("quick_gelu", "quick_gelu"),
    "layer_norm_epsilon": (1e-5, 1e-5),
    "scale_attn_weights": (True, True),
    "scale_attn_by_inverse_layer_idx": (False, False),
    "add_cross_attention": (False, False),
}


def to_hugging_face(source: ModelBundle, folder: Path) -> None:
    """Write a folder that `ImageGPTForCausalImageModeling` and `ImageGPTImageProcessor` open with `from_pretrained`.

    Their processor shrinks images by bilinear interpolation and does not crop; at the model's own resolution its tokens
    are ours. Raises IgptError for a model that is not plainly autoregressive.
    """
    config = source.model.config
    if config.objective == "masked" or config.classes is not None or config.low_resolution is not None:
        raise IgptError(
            "Hugging Face has no masked, class-conditional or super-resolution Image GPT: only an autoregressive one "
            "without conditions can be converted"
        )
    ours = source.model.state_dict()
    theirs = {
        "transformer.wte.weight": torch.cat([ours["tokens.weight"], ours["start"][None]]),
        "transformer.wpe.weight": ours["positions"],
        "transformer.ln_f.weight": ours["norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }
    for layer in range(config.layers):
        here, there = f"blocks.{layer}", f"transformer.h.{layer}"
        for name, their_name in NORMS.items():
            theirs[f"{there}.{their_name}.weight"] = ours[f"{here}.{name}.weight"]
        for name, their_name in _LINEAR.items():
            weight = ours[f"{here}.{name}.weight"]
            theirs[f"{there}.{their_name}.weight"] = weight.T.contiguous()
            theirs[f"{there}.{their_name}.bias"] = torch.zeros(len(weight))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _their_config(config))
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


def _their_config(config: ModelConfig) -> dict[str, object]:
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
    """Read a folder that `save_pretrained` wrote; the palette is the image processor's unless one is given.

    Raises IgptError for files that are missing or damaged, and for a model that is not the published architecture: with
    biases that are not zero, another activation or another kind of attention.
    """
    theirs_config = _read_json(folder / "config.json")
    for name, (required, default) in _REQUIRED.items():
        value = theirs_config.get(name, default)
        if value != required:
            raise IgptError(f"{folder}/config.json: {name} is {value!r}; an Image GPT of the paper has {required!r}")
    config = _our_config(theirs_config, folder)
    if palette_K3 is None:
        path = folder / "preprocessor_config.json"
        if not path.exists():
            raise IgptError(f"{folder}: it has no preprocessor_config.json with the palette; give one with --palette")
        palette_K3 = palettes.from_bytes(path.read_bytes(), str(path))
    theirs = _read_weights(folder)
    embedding = theirs.take("transformer.wte.weight", config.colours + 1, config.width)
    ours = {
        "tokens.weight": embedding[:-1],
        "start": embedding[-1],
        "positions": theirs.take("transformer.wpe.weight", config.positions, config.width),
        "norm.weight": theirs.take("transformer.ln_f.weight", config.width),
        "head.weight": theirs.take("lm_head.weight", config.colours, config.width),
    }
    width = config.width
    shapes = {"attention.qkv": (width, 3 * width), "attention.out": (width, width)}
    shapes |= {"mlp_in": (width, 4 * width), "mlp_out": (4 * width, width)}
    for layer in range(config.layers):
        here, there = f"blocks.{layer}", f"transformer.h.{layer}"
        for name, their_name in NORMS.items():
            ours[f"{here}.{name}.weight"] = theirs.take(f"{there}.{their_name}.weight", width)
        for name, their_name in _LINEAR.items():
            ours[f"{here}.{name}.weight"] = theirs.take(f"{there}.{their_name}.weight", *shapes[name]).T
            bias = theirs.take(f"{there}.{their_name}.bias", shapes[name][1])
            if bias.any():
                raise IgptError(
                    f"{folder}: {there}.{their_name}.bias is not zero (largest {bias.abs().max():.3g}); this Image GPT "
                    "has no biases, as OpenAI's has none: only models without can be converted"
                )
    return theirs.assemble(config, ours, palette_K3)


def _our_config(theirs: Mapping[str, Any], folder: Path) -> ModelConfig:
    try:
        positions, width = int(theirs["n_positions"]), int(theirs["n_embd"])
        if theirs.get("n_inner") not in (None, 4 * width):
            raise IgptError(
                f"{folder}/config.json: n_inner is {theirs['n_inner']}; an Image GPT of the paper has {4 * width}"
            )
        return ModelConfig(
            layers=int(theirs["n_layer"]),
            width=width,
            heads=int(theirs["n_head"]),
            resolution=side_of(positions, str(folder)),
            colours=int(theirs["vocab_size"]) - 1,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IgptError(f"{folder}/config.json: not the config of an Image GPT ({error!r})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise IgptError(f"{path.parent}: {path.name} is missing; give a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise IgptError(f"{path}: damaged ({error})") from None
    if not isinstance(value, dict):
        raise IgptError(f"{path}: not a config")
    return value


def _read_weights(folder: Path) -> ForeignWeights:
    """The tensors of a folder: of one safetensors file or several, or of the older .bin file."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    try:
        if (folder / names[0]).exists():
            tensors = {k: v for name in names for k, v in safetensors.torch.load_file(folder / Path(name).name).items()}
        else:
            # weights_only: tensors are built, and nothing else of the pickle is run.
            tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        # Older versions of transformers kept the causal mask among the weights.
        masks = (".attn.bias", ".attn.masked_bias")
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(masks)}
        return ForeignWeights(kept, str(folder))
    except FileNotFoundError:
        raise IgptError(f"{folder}: model.safetensors is missing; give a folder that save_pretrained wrote") from None
    except UnpicklingError:
        raise IgptError(
            f"{folder}/pytorch_model.bin: damaged, or it holds more than tensors, which is not run; "
            "have transformers write the model as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, AttributeError) as error:
        raise IgptError(f"{folder}: damaged weights ({first_line(error)})") from None
