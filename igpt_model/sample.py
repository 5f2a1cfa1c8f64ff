"""Drawing images from a model: from nothing, or as completions of given first pixels."""

import torch
from torch import Tensor

from igpt_model.model import ImageGPT, KeyValueCache


@torch.inference_mode()
def complete(
    model: ImageGPT,
    prefix_BT: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Draw the pixels after the given ones; int64 [B, t] with 0 <= t < T to int64 [B, T], the prefix kept.

    Each pixel is drawn from the model's distribution given all before it, sharpened by a temperature below 1 and cut to
    the `top_k` likeliest colours. The same seed draws the same images on the same machine.
    """
    config = model.config
    B, given = prefix_BT.shape
    device = prefix_BT.device
    generator = torch.Generator(device).manual_seed(seed)
    tokens_BT = torch.zeros(B, config.positions, dtype=torch.int64, device=device)
    tokens_BT[:, :given] = prefix_BT
    cache = KeyValueCache(config, B, model.positions)
    # The inputs of positions 0 to `given` need the start vector and the prefix alone.
    logits_BK = model.transform(model.embed(tokens_BT[:, : given + 1]), cache)[:, -1]
    for position in range(given, config.positions):
        tokens_BT[:, position] = _draw(logits_BK.float(), temperature, top_k, generator)
        if position + 1 < config.positions:
            logits_BK = model.transform(model.embed_next(tokens_BT[:, position], position + 1), cache)[:, -1]
    return tokens_BT


def _draw(logits_BK: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    logits_BK = logits_BK / max(temperature, 1e-6)
    if top_k is not None and top_k < logits_BK.shape[1]:
        least_B1 = logits_BK.topk(top_k).values[:, -1:]
        logits_BK = logits_BK.masked_fill(logits_BK < least_B1, float("-inf"))
    return torch.multinomial(logits_BK.softmax(1), 1, generator=generator)[:, 0]


def draw(model: ImageGPT, count: int, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0) -> Tensor:
    """Draw whole images; int64 [count, T]."""
    nothing = torch.zeros(count, 0, dtype=torch.int64, device=model.positions.device)
    return complete(model, nothing, temperature=temperature, top_k=top_k, seed=seed)
