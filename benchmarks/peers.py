"""The models that ours is compared with: Hugging Face's with our weights, and one in the style of nanoGPT."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt_model.convert.hugging_face import to_hugging_face
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT

if TYPE_CHECKING:
    from transformers import ImageGPTForCausalImageModeling


def our_model(config: ModelConfig, device: torch.device) -> ImageGPT:
    """An Image GPT with a random output matrix, so that no logit is zero; drawn on the device."""
    torch.manual_seed(0)
    with device:
        model = ImageGPT(config)
    nn.init.normal_(model.head.weight, std=0.02)
    return model


def hugging_face(ours: ImageGPT) -> "ImageGPTForCausalImageModeling":
    """Hugging Face's model with the same weights, on the same device. Raises ImportError without transformers."""
    from transformers import ImageGPTForCausalImageModeling  # noqa: PLC0415 (not on every machine that measures ours)
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    colours = np.zeros((ours.config.colours, 3), np.float32)
    device = ours.positions.device
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as temporary:
        to_hugging_face(ModelBundle(model=ours.to("cpu"), palette_K3=colours, classes=()), Path(temporary))
        theirs = ImageGPTForCausalImageModeling.from_pretrained(temporary)
    ours.to(device)
    return theirs.to(device)


def their_inputs(tokens_BT: Tensor, colours: int) -> Tensor:
    """Tokens for Hugging Face's model: with its start token, whose number is that of the colours, in front."""
    start_B1 = torch.full((len(tokens_BT), 1), colours, device=tokens_BT.device)
    return torch.cat([start_B1, tokens_BT[:, :-1]], 1)


class _Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        q, k, v = (
            part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm_1(x_BTC)).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTC = x_BTC + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
        return x_BTC + self.narrow(F.gelu(self.wide(self.norm_2(x_BTC))))


class NanoGPT(nn.Module):
    """A GPT of today's usual kind and the same shape: LayerNorm, GELU, SDPA, no biases, tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.colours + 1, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.colours + 1, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean loss of the targets, given tokens that begin with the start token."""
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTC = self.tokens(tokens_BT) + self.positions(places_T)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        return F.cross_entropy(self.head(self.norm(x_BTC)).flatten(0, 1), targets_BT.flatten())
