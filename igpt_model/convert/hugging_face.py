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

Hugging Face's four linear layers have biases, which are zero in OpenAI's models; ImageGPT has no biases. With tied
embeddings (`tie_word_embeddings`) there is no lm_head, and the output layer is wte. Its last row gives the start token
a logit too; as that is no colour, head.weight is the other rows.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from igpt_model.convert import stored_tensors
from igpt_model.convert.weights import NORMS, Piece, StoredTensor, convert, side_of
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError
from pipeline.images import palette

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_WANTED = "give a folder that ImageGPTForCausalImageModeling.save_pretrained wrote"
# The files of the weights, in the order in which transformers looks for them, and whether one is a list of files.
_WEIGHTS = {
    "model.safetensors": False,
    "model.safetensors.index.json": True,
    "pytorch_model.bin": False,
    "pytorch_model.bin.index.json": True,
}
INDEXES = tuple(name for name, lists_files in _WEIGHTS.items() if lists_files)
# Older versions of transformers stored the causal mask with the weights.
_MASKS = (".attn.bias", ".attn.masked_bias")
# What an image processor does with a pixel of 0 to 255 before it compares it with the palette: x / 127.5 - 1.
_PIXELS = {
    "do_normalize": (True,),
    "do_rescale": (True,),
    "rescale_factor": (1 / 255, 0.00392156862745098),
    "image_mean": ([0.5, 0.5, 0.5], 0.5),
    "image_std": ([0.5, 0.5, 0.5], 0.5),
}
_MAX_JSON_BYTES = 64 << 20

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
    biases, another activation or another kind of attention, no output layer.
    """
    hf_config = _read_json(folder / CONFIG)
    for name, (required, default) in _REQUIRED.items():
        value = hf_config.get(name, default)
        if value != required:
            raise IgptError(f"{folder}/{CONFIG}: {name} is {value!r}; an Image GPT of the paper has {required!r}")
    config = _model_config(hf_config, folder)
    stored = _stored(folder)
    tied = hf_config.get("tie_word_embeddings", False) is True
    parts = pieces(config, prefix=_prefix(stored, folder, tied=tied), head="lm_head.weight" in stored)
    if palette_K3 is None:
        palette_K3 = _palette(folder, config)
    return convert(config, stored, parts, palette_K3, str(folder))


def pieces(config: ModelConfig, *, prefix: str = "transformer.", head: bool = True) -> Iterator[Piece]:
    """What becomes of each tensor of Hugging Face's model of this shape.

    `prefix`: what all names but that of the output layer begin with. `head`: it has an output layer of its own, not the
    embeddings.
    """
    width, vocabulary = config.width, (config.colours + 1, config.width)
    colours = (0, config.colours)
    yield Piece(source=f"{prefix}wte.weight", shape=vocabulary, target="tokens.weight", source_rows=colours)
    yield Piece(
        source=f"{prefix}wte.weight", shape=vocabulary, target="start", source_rows=(config.colours, config.colours + 1)
    )
    yield Piece(source=f"{prefix}wpe.weight", shape=(config.positions, width), target="positions")
    yield Piece(source=f"{prefix}ln_f.weight", shape=(width,), target="norm.weight")
    if head:
        yield Piece(source="lm_head.weight", shape=(config.colours, width), target="head.weight")
    else:
        yield Piece(source=f"{prefix}wte.weight", shape=vocabulary, target="head.weight", source_rows=colours)
    shapes = {"attention.qkv": (width, 3 * width), "attention.out": (width, width)}
    shapes |= {"mlp_in": (width, 4 * width), "mlp_out": (4 * width, width)}
    for layer in range(config.layers):
        block, theirs = f"blocks.{layer}", f"{prefix}h.{layer}"
        for name, their_name in NORMS.items():
            yield Piece(source=f"{theirs}.{their_name}.weight", shape=(width,), target=f"{block}.{name}.weight")
        for name, their_name in _LINEAR.items():
            yield Piece(
                source=f"{theirs}.{their_name}.weight",
                shape=shapes[name],
                target=f"{block}.{name}.weight",
                transposed=True,
            )
            yield Piece(source=f"{theirs}.{their_name}.bias", shape=shapes[name][1:], target=None)


def _prefix(stored: Mapping[str, StoredTensor], folder: Path, *, tied: bool) -> str:
    """What the names of the tensors begin with. Raises IgptError for a model without an output layer."""
    if "score.weight" in stored:
        raise IgptError(
            f"{folder}: a classifier (ImageGPTForImageClassification), which has no output layer for colours; {_WANTED}"
        )
    if tied and "lm_head.weight" in stored:
        raise IgptError(
            f"{folder}: tie_word_embeddings is true, and it has an output layer of its own (lm_head.weight); correct "
            f"{CONFIG}, or leave that out"
        )
    bare = "wte.weight" in stored
    if "lm_head.weight" not in stored and not tied:
        kind = "saved by ImageGPTModel, " if bare else ""
        raise IgptError(
            f"{folder}: {kind}without an output layer (lm_head.weight), so it draws and scores nothing; {_WANTED}"
        )
    return "" if bare else "transformer."


def _model_config(hf_config: Mapping[str, Any], folder: Path) -> ModelConfig:
    try:
        positions, width = int(hf_config["n_positions"]), int(hf_config["n_embd"])
        if hf_config.get("n_inner") not in (None, 4 * width):
            raise IgptError(
                f"{folder}/{CONFIG}: n_inner is {hf_config['n_inner']}; an Image GPT of the paper has {4 * width}"
            )
        return ModelConfig(
            layers=int(hf_config["n_layer"]),
            width=width,
            heads=int(hf_config["n_head"]),
            resolution=side_of(positions, str(folder)),
            colours=int(hf_config["vocab_size"]) - 1,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise IgptError(f"{folder}/{CONFIG}: not the config of an Image GPT ({error!r})") from None


def _palette(folder: Path, config: ModelConfig) -> np.ndarray:
    """The palette of the image processor. Raises IgptError for one whose tokens are not those of the model."""
    path = folder / PROCESSOR
    if not path.exists():
        raise IgptError(f"{folder}: it has no {PROCESSOR} with the palette; give one with --palette")
    processor = _read_json(path)
    if processor.get("clusters") is None:
        raise IgptError(f"{path}: it has no clusters, which are the palette; give one with --palette")
    for name, allowed in _PIXELS.items():
        value = processor.get(name, allowed[0])
        if value not in allowed:
            raise IgptError(
                f"{path}: {name} is {value!r}; an Image GPT of the paper has {allowed[0]!r}: give its palette in "
                "[-1, 1] with --palette"
            )
    size, side = processor.get("size", config.resolution), config.resolution
    sides = list(size.values()) if isinstance(size, dict) else [size]
    if any(length != side for length in sides):
        raise IgptError(
            f"{path}: its images have the size {size}, and the model {config.positions} positions, {side}x{side}; "
            "correct the one that is wrong, or give the palette with --palette"
        )
    colours = palette.from_bytes(json.dumps({"clusters": processor["clusters"]}).encode(), str(path))
    if len(colours) == config.colours + 1:
        raise IgptError(
            f"{folder}: vocab_size is {config.colours + 1} and the palette has as many colours; vocab_size must be one "
            "more, for the start token"
        )
    return colours


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise IgptError(f"{path}: not a config, it has {path.stat().st_size:,} bytes")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise IgptError(f"{path.parent}: {path.name} is missing; {_WANTED}") from None
    except (ValueError, RecursionError) as error:
        raise IgptError(f"{path}: damaged ({error})") from None
    if not isinstance(value, dict):
        raise IgptError(f"{path}: not a config")
    return value


def weight_files(folder: Path, present: Collection[str]) -> list[str]:
    """The names of the files with the weights, given those that are present in a folder; indexes are read from there.

    Raises IgptError when there are none, or one of them is missing.
    """
    for name, lists_files in _WEIGHTS.items():
        if name not in present:
            continue
        if not lists_files:
            return [name]
        listed = _read_json(folder / name).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise IgptError(f"{folder}/{name}: damaged, it lists no files")
        names = sorted({Path(str(file)).name for file in listed.values()})  # never a file of another folder
        if missing := sorted(set(names) - set(present)):
            raise IgptError(f"{folder}: {missing[0]} is missing, which {name} lists; {_WANTED}")
        return names
    raise IgptError(f"{folder}: model.safetensors is missing; {_WANTED}")


def _stored(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder, without causal masks."""
    paths = [folder / name for name in weight_files(folder, {path.name for path in folder.iterdir()})]
    read = stored_tensors.of_pytorch_files if paths[0].suffix == ".bin" else stored_tensors.of_safetensors
    return {name: tensor for name, tensor in read(paths, str(folder)).items() if not name.endswith(_MASKS)}
