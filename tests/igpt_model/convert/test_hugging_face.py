"""Conversion to and from Hugging Face gives the results of their implementation, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from igpt_model.convert.hugging_face import from_hugging_face, pieces, to_hugging_face
from igpt_model.convert.weights import StoredTensor, check
from igpt_model.inference.features import image_features
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.errors import IgptError

if TYPE_CHECKING:
    from transformers import ImageGPTConfig, PreTrainedModel

SIZES = {
    "two layers of 8x8": ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=17),
    "wide heads": ModelConfig(layers=3, width=96, heads=2, resolution=8, colours=64),
    "512 colours, 16x16": ModelConfig(layers=6, width=128, heads=8, resolution=16, colours=512),
    "32x32": ModelConfig(layers=2, width=64, heads=8, resolution=32, colours=512),
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def colours_of(count: int) -> np.ndarray:
    colours = np.random.default_rng(0).uniform(-1, 1, (count, 3)).astype(np.float32)
    return colours[np.lexsort(colours.T)]


def random_bundle(config: ModelConfig) -> ModelBundle:
    """A model whose every weight matters: nothing is zero, no gain is one."""
    torch.manual_seed(1)
    model = ImageGPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
        torch.nn.init.normal_(model.head.weight, std=0.2)
    return ModelBundle(model=model, palette_K3=colours_of(config.colours), classes=())


def some_tokens(config: ModelConfig, count: int = 3) -> torch.Tensor:
    return torch.randint(0, config.colours, (count, config.positions), generator=torch.Generator().manual_seed(2))


def hf_inputs(tokens: torch.Tensor, colours: int) -> torch.Tensor:
    """In Hugging Face's models the start token is the one after the last colour."""
    return torch.cat([torch.full((len(tokens), 1), colours), tokens[:, :-1]], 1)


@pytest.mark.parametrize("size", SIZES)
def test_logits_losses_and_gradients_equal_hugging_faces(size: str, tmp_path: Path) -> None:
    from transformers import ImageGPTForCausalImageModeling

    config = SIZES[size]
    model = random_bundle(config).model
    to_hugging_face(ModelBundle(model=model, palette_K3=colours_of(config.colours), classes=()), tmp_path)
    hf_model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path).train()
    tokens = some_tokens(config)
    inputs = hf_inputs(tokens, config.colours)
    model_logits, hf_logits = model(tokens), hf_model(inputs).logits
    torch.testing.assert_close(model_logits, hf_logits, atol=1e-5, rtol=1e-5)
    model_loss = F.cross_entropy(model_logits.flatten(0, 1), tokens.flatten())
    hf_loss = F.cross_entropy(hf_logits.flatten(0, 1), tokens.flatten())
    assert abs(model_loss.item() - hf_loss.item()) < 1e-5
    # Hugging Face shifts the labels once more, so its loss leaves out the last pixel.
    shifted = hf_model(inputs, labels=inputs).loss
    all_but_last = F.cross_entropy(model_logits[:, :-1].flatten(0, 1), tokens[:, :-1].flatten())
    assert abs(shifted.item() - all_but_last.item()) < 1e-5
    model_loss.backward()
    hf_loss.backward()
    wte = hf_model.transformer.wte.weight.grad
    pairs = [
        (model.tokens.weight.grad, wte[:-1]),
        (model.start.grad, wte[-1]),
        (model.positions.grad, hf_model.transformer.wpe.weight.grad),
        (model.norm.weight.grad, hf_model.transformer.ln_f.weight.grad),
        (model.head.weight.grad, hf_model.lm_head.weight.grad),
    ]
    for block, hf_block in zip(model.layers, hf_model.transformer.h, strict=True):
        pairs += [
            (block.attention_norm.weight.grad, hf_block.ln_1.weight.grad),
            (block.attention.qkv.weight.grad, hf_block.attn.c_attn.weight.grad.T),
            (block.attention.out.weight.grad, hf_block.attn.c_proj.weight.grad.T),
            (block.mlp_norm.weight.grad, hf_block.ln_2.weight.grad),
            (block.mlp_in.weight.grad, hf_block.mlp.c_fc.weight.grad.T),
            (block.mlp_out.weight.grad, hf_block.mlp.c_proj.weight.grad.T),
        ]
    assert len(pairs) == len(list(model.parameters()))
    for model_gradient, hf_gradient in pairs:
        assert model_gradient.abs().max() > 0
        torch.testing.assert_close(model_gradient, hf_gradient, atol=1e-4, rtol=1e-4)


def test_pooled_features_are_those_of_their_hidden_states(tmp_path: Path) -> None:
    """Their hidden states are the residual stream before each block, and the final normalized one."""
    from transformers import ImageGPTModel

    config = SIZES["512 colours, 16x16"]
    bundle = random_bundle(config)
    to_hugging_face(bundle, tmp_path)
    hf_model = ImageGPTModel.from_pretrained(tmp_path).eval()
    tokens = some_tokens(config, 4)
    with torch.inference_mode():
        *states, last = hf_model(hf_inputs(tokens, config.colours), output_hidden_states=True).hidden_states
        expected = [block.ln_1(state).mean(1) for block, state in zip(hf_model.h, states, strict=True)]
    features = image_features(bundle, tokens)
    torch.testing.assert_close(features, torch.stack([*expected, last.mean(1)]), atol=1e-4, rtol=1e-4)


def test_a_model_that_went_to_hugging_face_and_back_is_the_same(tmp_path: Path) -> None:
    from transformers import ImageGPTForCausalImageModeling

    source = random_bundle(SIZES["wide heads"])
    to_hugging_face(source, tmp_path / "out")
    hf_model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "out")
    hf_model.save_pretrained(tmp_path / "again")  # as transformers writes it
    for folder, given in ((tmp_path / "out", None), (tmp_path / "again", source.palette_K3)):
        back = from_hugging_face(folder, given)
        assert back.model.config == source.model.config
        assert np.array_equal(back.palette_K3, source.palette_K3)
        expected = source.model.state_dict()
        assert all(torch.equal(weight, expected[name]) for name, weight in back.model.state_dict().items())


def test_the_older_file_of_weights_is_read_without_running_code_in_it(tmp_path: Path) -> None:
    from transformers import ImageGPTForCausalImageModeling

    source = random_bundle(SIZES["two layers of 8x8"])
    to_hugging_face(source, tmp_path)
    weights = ImageGPTForCausalImageModeling.from_pretrained(tmp_path).state_dict()
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # a mask, as versions before 4.31 stored it
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert torch.equal(from_hugging_face(tmp_path).model.start, source.model.start)
    torch.save({"weights": Path("anything")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(IgptError, match="holds objects other than tensors"):
        from_hugging_face(tmp_path)


def test_their_image_processor_gives_our_tokens(photos: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    source = random_bundle(SIZES["512 colours, 16x16"])
    to_hugging_face(source, tmp_path)
    pictures = photos[:8, 20:36, 20:36]
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    hf_tokens = processor([Image.fromarray(picture) for picture in pictures], return_tensors="np")["input_ids"]
    tokens = source.quantize(pictures)
    # Hugging Face computes distances in float32 as a^2 - 2ab + b^2: near-ties of two colours may resolve otherwise.
    assert (hf_tokens.reshape(8, 256) == tokens).mean() > 0.999


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_no_published_image_gpt_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = random_bundle(SIZES["two layers of 8x8"])

    def refused(expected: str) -> None:
        with pytest.raises(IgptError, match=expected) as caught:
            from_hugging_face(tmp_path)
        assert "\n" not in str(caught.value)
        to_hugging_face(source, tmp_path)

    refused(r"config\.json is missing")
    edit(tmp_path / "config.json", activation_function="gelu")
    refused("activation_function is 'gelu'")
    edit(tmp_path / "config.json", scale_attn_by_inverse_layer_idx=True)
    refused("scale_attn_by_inverse_layer_idx is True")
    edit(tmp_path / "config.json", n_positions=60)
    refused("60 positions are not the pixels of a square image")
    edit(tmp_path / "config.json", n_inner=64)
    refused("n_inner is 64")
    edit(tmp_path / "config.json", n_layer=1)
    refused(r"transformer\.h\.1\.attn\.c_attn\.bias is not a weight of an Image GPT")
    (tmp_path / "preprocessor_config.json").unlink()
    refused("no preprocessor_config")
    edit(tmp_path / "preprocessor_config.json", clusters=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    refused("17 colours and the palette 2")
    for name, change, expected in (
        ("transformer.h.1.mlp.c_fc.bias", lambda t: t.index_fill(0, torch.tensor([3]), 0.25), "not zero .largest 0.25"),
        ("lm_head.weight", lambda t: t[:-1].clone(), "has the shape"),
    ):
        weights = load_file(tmp_path / "model.safetensors")
        weights[name] = change(weights[name])
        save_file(weights, tmp_path / "model.safetensors")
        refused(expected)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    refused("damaged weights")


# Layers, width, heads and millions of parameters of openai/imagegpt-small, -medium, -large; 32x32 pixels, 512 colours.
PUBLISHED = {"small": (24, 512, 8, 76), "medium": (36, 1024, 8, 455), "large": (48, 1536, 16, 1362)}


def published(name: str) -> tuple[ImageGPTConfig, ModelConfig]:
    """The config of a published model, theirs with its default fields and ours."""
    from transformers import ImageGPTConfig

    layers, width, heads, _ = PUBLISHED[name]
    theirs = ImageGPTConfig(n_layer=layers, n_embd=width, n_head=heads)
    return theirs, ModelConfig(layers=layers, width=width, heads=heads, resolution=32, colours=512)


def no_values() -> torch.Tensor:
    raise AssertionError("values of a model without any are read")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_shapes_has_its_place(name: str) -> None:
    """On the meta device: names and shapes without values. Each parameter of ours is filled exactly once."""
    from transformers import ImageGPTForCausalImageModeling

    theirs, config = published(name)
    with torch.device("meta"):
        tensors = ImageGPTForCausalImageModeling(theirs).state_dict()
        ours = ImageGPT(config).state_dict()
    stored = {
        key: StoredTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=no_values)
        for key, tensor in tensors.items()
    }
    filled = dict.fromkeys(ours, 0)
    for piece in check(stored, pieces(config), name):
        if piece.target is not None:
            begin, end = piece.source_rows or (0, piece.shape[0])
            filled[piece.target] += (end - begin) * (piece.shape[1] if len(piece.shape) > 1 else 1)
    assert filled == {key: tensor.numel() for key, tensor in ours.items()}
    assert sum(filled.values()) // 10**6 == PUBLISHED[name][3]


def write_processor(folder: Path, colours: np.ndarray, side: int, **fields: object) -> None:
    """The file of an image processor as published in 2021; `fields` replace its own."""
    processor = {
        "clusters": colours.tolist(),
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ImageGPTFeatureExtractor",
        "resample": 2,
        "size": side,
        **fields,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def test_the_small_published_shape_gives_their_logits(tmp_path: Path) -> None:
    from transformers import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    theirs, config = published("small")
    hf_model = ImageGPTForCausalImageModeling(theirs).eval()
    hf_model.save_pretrained(tmp_path)
    write_processor(tmp_path, colours_of(512), 32)
    bundle = from_hugging_face(tmp_path)
    assert bundle.model.config == config
    tokens = some_tokens(config, 1)
    with torch.inference_mode():
        torch.testing.assert_close(bundle.model(tokens), hf_model(hf_inputs(tokens, 512)).logits, atol=1e-4, rtol=1e-4)


def save_theirs(folder: Path, kind: str = "ImageGPTForCausalImageModeling", **fields: object) -> PreTrainedModel:
    """A random model of a class of transformers, saved as it saves, with a processor of the same 16 colours."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ImageGPTConfig(
        vocab_size=17,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        **fields,  # type: ignore[arg-type]
    )
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    write_processor(folder, colours_of(16), 8)
    return model


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def in_shards(folder: Path) -> None:
    from transformers import ImageGPTForCausalImageModeling

    ImageGPTForCausalImageModeling.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def in_old_shards(folder: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def without(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key != name}


def without_biases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}


def in_half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


TAKEN = {
    "as published": ({}, lambda folder: None),
    "tied embeddings": ({"tie_word_embeddings": True}, lambda folder: None),
    "tied, saved by ImageGPTModel": ({"kind": "ImageGPTModel", "tie_word_embeddings": True}, lambda folder: None),
    "attention in another order": ({"reorder_and_upcast_attn": True}, lambda folder: None),
    "shards": ({}, in_shards),
    "shards before safetensors": ({}, in_old_shards),
    "no biases": ({}, lambda folder: change_tensors(folder, without_biases)),
    "half precision": ({}, lambda folder: change_tensors(folder, in_half)),
    "a processor of transformers 5": (
        {},
        lambda folder: write_processor(
            folder, colours_of(16), 8, size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3,
            do_rescale=True, rescale_factor=1 / 255,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_folders_of_other_forms_are_taken_where_that_is_exact(name: str, tmp_path: Path) -> None:
    """The logits of the colours are those of transformers; a tied model of theirs gives the start token one too."""
    from transformers import ImageGPTForCausalImageModeling

    fields, change = TAKEN[name]
    save_theirs(tmp_path, **fields)  # type: ignore[arg-type]
    change(tmp_path)
    hf_model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for key, parameter in hf_model.named_parameters():
        if key.endswith(".bias"):  # transformers 5 leaves those that are not in the files as the memory was
            torch.nn.init.zeros_(parameter)
    bundle = from_hugging_face(tmp_path)
    tokens = some_tokens(bundle.model.config)
    with torch.inference_mode():
        expected = hf_model(hf_inputs(tokens, 16)).logits[:, :, :16]
        torch.testing.assert_close(bundle.model(tokens), expected, atol=1e-5, rtol=1e-5)
    assert bundle.palette_K3 == pytest.approx(colours_of(16))


def processor(**fields: object) -> Callable[[Path], None]:
    return lambda folder: write_processor(folder, colours_of(16), 8, **fields)


def of_another_vocabulary(folder: Path) -> None:
    write_processor(folder, colours_of(17), 8)


def of_integers(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: tensor.to(torch.int8) for name, tensor in tensors.items()})


TOLD = {
    "a classifier": (
        {"kind": "ImageGPTForImageClassification", "num_labels": 10},
        lambda folder: None,
        "a classifier .ImageGPTForImageClassification., .* ImageGPTForCausalImageModeling",
    ),
    "without an output layer": (
        {"kind": "ImageGPTModel"},
        lambda folder: None,
        "saved by ImageGPTModel, without an output layer .* ImageGPTForCausalImageModeling",
    ),
    "tied, with an output layer of its own": (
        {},
        lambda folder: edit(folder / "config.json", tie_word_embeddings=True),
        "tie_word_embeddings is true, and it has an output layer of its own",
    ),
    "another activation": ({"activation_function": "gelu"}, lambda folder: None, "activation_function is 'gelu'"),
    "another attention": ({"scale_attn_weights": False}, lambda folder: None, "scale_attn_weights is False"),
    "another vocabulary": ({}, of_another_vocabulary, "vocab_size is 17 and the palette has as many colours"),
    "no palette": ({}, lambda folder: (folder / "preprocessor_config.json").unlink(), "it has no preprocessor_config"),
    "a processor without palette": ({}, processor(clusters=None), "it has no clusters, which are the palette"),
    "other pixels": ({}, processor(do_normalize=False), "do_normalize is False; an Image GPT of the paper has True"),
    "pixels of another mean": ({}, processor(image_mean=[0.4, 0.5, 0.5]), "image_mean is"),
    "colours that are none": ({}, processor(clusters=[["red", 0, 0]] * 16), "not a palette"),
    "images of another size": ({}, processor(size={"height": 4, "width": 4}), "its images have the size .* 8x8"),
    "integers": ({}, of_integers, "is int8: give float32, float16 or bfloat16"),
    "a shard that is missing": (
        {},
        lambda folder: (in_shards(folder), sorted(folder.glob("model-*"))[0].unlink()),
        "model-00001-of-.* is missing, which model.safetensors.index.json lists",
    ),
    "no weights": ({}, lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a bias that is missing": (
        {},
        lambda folder: change_tensors(folder, lambda tensors: without(tensors, "transformer.h.0.attn.c_attn.bias")),
        r"transformer\.h\.0\.attn\.c_attn\.bias is missing",
    ),
    "more layers than there are": (
        {},
        lambda folder: edit(folder / "config.json", n_layer=10**9),
        r"transformer.h.2.ln_1.weight is missing",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_folders_of_other_forms_are_told_in_one_line(name: str, tmp_path: Path) -> None:
    fields, change, expected = TOLD[name]
    save_theirs(tmp_path, **fields)  # type: ignore[arg-type]
    change(tmp_path)
    with pytest.raises(IgptError, match=expected) as caught:
        from_hugging_face(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


def test_only_a_plain_model_goes_to_hugging_face(tmp_path: Path) -> None:
    for fields in ({"objective": "masked"}, {"classes": 3}, {"low_resolution": 4}):
        config = ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=5, **fields)  # type: ignore[arg-type]
        bundle = ModelBundle(model=ImageGPT(config), palette_K3=colours_of(5), classes=())
        with pytest.raises(IgptError, match="only an autoregressive one"):
            to_hugging_face(bundle, tmp_path / "out")
        assert not (tmp_path / "out").exists()
