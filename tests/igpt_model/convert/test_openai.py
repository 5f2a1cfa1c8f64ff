"""OpenAI's variables give what OpenAI's code computes, and incomplete ones are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.convert.openai import from_openai
from igpt_model.model.config import ModelConfig
from pipeline.errors import IgptError
from pipeline.images import palette
from tests.igpt_model.convert.test_hugging_face import colours_of


def openai_variables(*, masked: bool) -> dict[str, np.ndarray]:
    """Variables with the names and shapes that OpenAI's src/model.py makes: two layers of width 24, three heads."""
    random = np.random.default_rng(3)
    layers, width, heads, colours, positions = 2, 24, 3, 17, 16

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype(np.float32)

    variables = {
        "model/wpe": normal(positions, width),
        "model/wte": normal(colours, width),
        "model/wtet": normal(colours, width),
        "model/ln_f/g": normal(width),
        "model/clf/wclf": normal(10, width),
        "model/wte/Adam": normal(colours, width),
        "global_step": np.array(7),
    }
    if not masked:
        variables["model/sos"] = normal(width)
    for layer in range(layers):
        for norm in ("ln_1", "ln_2"):
            variables[f"model/h{layer}/{norm}/g"] = normal(width)
        for projection in ("q_proj", "k_proj", "v_proj", "c_proj"):
            variables[f"model/h{layer}/attn/{projection}"] = normal(heads, width // heads, width)
        variables[f"model/h{layer}/mlp/c_fc/w"] = normal(width, 4 * width)
        variables[f"model/h{layer}/mlp/c_proj/w"] = normal(4 * width, width)
    return variables


def openai_logits(variables: dict[str, np.ndarray], tokens: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """What OpenAI's graph computes, operation by operation in NumPy: float64 [B, T, K]."""
    v = {name.removeprefix("model/"): value.astype(np.float64) for name, value in variables.items()}
    batch, length = tokens.shape

    def norm(x: np.ndarray, scope: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * v[f"{scope}/g"]

    h = v["wte"][tokens]
    if kept is not None:
        h = h * kept[:, :, None]
    else:
        h = np.concatenate([np.broadcast_to(v["sos"], (batch, 1, h.shape[2])), h[:, :-1]], 1)
    h = h + v["wpe"]
    for layer in range(2):
        scope = f"h{layer}"
        x = norm(h, f"{scope}/ln_1")
        q, k, a = (np.einsum("bsf,hef->bhse", x, v[f"{scope}/attn/{name}_proj"]) for name in "qkv")
        w = q @ k.swapaxes(2, 3) / np.sqrt(a.shape[-1])
        if kept is None:
            mask = np.tril(np.ones((length, length)))
            w = w * mask - 1e10 * (1 - mask)
        w = np.exp(w - w.max(-1, keepdims=True))
        attended = (w / w.sum(-1, keepdims=True)) @ a
        h = h + np.einsum("bhse,hef->bsf", attended, v[f"{scope}/attn/c_proj"])
        wide = norm(h, f"{scope}/ln_2") @ v[f"{scope}/mlp/c_fc/w"]
        h = h + (wide / (1 + np.exp(-1.702 * wide))) @ v[f"{scope}/mlp/c_proj/w"]
    return norm(h, "ln_f") @ v["wtet"].T


@pytest.mark.parametrize("masked", [False, True])
def test_openais_variables_give_what_openais_code_computes(masked: bool, tmp_path: Path) -> None:
    variables = openai_variables(masked=masked)
    np.savez(tmp_path / "model.npz", **variables)
    colours = colours_of(17)
    bundle = from_openai(tmp_path / "model.npz", colours)
    assert bundle.model.config == ModelConfig(
        layers=2, width=24, heads=3, resolution=4, colours=17, objective="masked" if masked else "autoregressive"
    )
    tokens = np.random.default_rng(4).integers(0, 17, (3, 16))
    kept = np.random.default_rng(5).random((3, 16)) > 0.15 if masked else None
    logits = bundle.model(torch.from_numpy(tokens), masked_BT=None if kept is None else torch.from_numpy(~kept))
    np.testing.assert_allclose(logits.detach().numpy(), openai_logits(variables, tokens, kept), atol=1e-5, rtol=1e-5)


def test_incomplete_variables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    good = openai_variables(masked=False)

    def refused(variables: dict[str, np.ndarray], expected: str, colours: int = 17) -> None:
        np.savez(path, **variables)
        with pytest.raises(IgptError, match=expected):
            from_openai(path, colours_of(colours))

    refused({k: v for k, v in good.items() if k != "model/h1/attn/v_proj"}, "model: h1/attn/v_proj is missing")
    refused({k: v for k, v in good.items() if k != "model/wte"}, "there is no model/wte")
    refused({**good, "model/h1/attn/k_proj": good["model/h1/attn/k_proj"][:, :-1]}, "has the shape")
    refused({**good, "model/h1/attn/bias": np.zeros(3)}, "h1/attn/bias is not a weight")
    refused(good, "17 colours and the palette 16", colours=16)
    path.write_bytes(b"no zip")
    with pytest.raises(IgptError, match=r"not an \.npz file"):
        from_openai(path, palette.from_bytes(palette.to_bytes(colours_of(17)), "here"))
