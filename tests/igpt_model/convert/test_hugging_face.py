"""Conversion to and from Hugging Face gives the results of their implementation, in both directions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from igpt_model.convert.hugging_face import from_hugging_face, to_hugging_face
from igpt_model.inference.features import image_features
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.errors import IgptError

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


def test_only_a_plain_model_goes_to_hugging_face(tmp_path: Path) -> None:
    for fields in ({"objective": "masked"}, {"classes": 3}, {"low_resolution": 4}):
        config = ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=5, **fields)  # type: ignore[arg-type]
        bundle = ModelBundle(model=ImageGPT(config), palette_K3=colours_of(5), classes=())
        with pytest.raises(IgptError, match="only an autoregressive one"):
            to_hugging_face(bundle, tmp_path / "out")
        assert not (tmp_path / "out").exists()
