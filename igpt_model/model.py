"""The Image GPT of Chen et al. 2020: the mathematics alone, without training, sampling or parallelism.

What is special about it: RMS normalization with a gain only (eps 1e-5) before each half of a block, no biases, an MLP
of x * sigmoid(1.702 x), a learned start vector, learned positions, an output matrix of its own, and OpenAI's initial
deviations (section 3.2 of the paper and its published code).

Shapes: B batch, T positions (pixels, row by row), C width, H heads, D width per head, K colours.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt_model.config import ModelConfig

_NORM_EPS = 1e-5


class KeyValueCache:
    """Keys and values of the positions so far, in memory allocated once: [layers, 2, B, H, T, D]."""

    def __init__(self, config: ModelConfig, batch: int, like: Tensor) -> None:
        shape = (config.layers, 2, batch, config.heads, config.positions, config.width // config.heads)
        self._memory = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.filled = 0

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the next positions; return those of all positions so far."""
        end = self.filled + k_BHTD.shape[2]
        keys, values = self._memory[layer]
        keys[:, :, self.filled : end] = k_BHTD
        values[:, :, self.filled : end] = v_BHTD
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Causal multi-head self-attention without biases."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = config.heads, layer
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BTC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Attend from each position to itself and those before it, the cached ones included."""
        B, T, C = x_BTC.shape
        q_BHTD, k_BHTD, v_BHTD = self.qkv(x_BTC).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        causal = T > 1
        if cache is not None:
            if causal and cache.filled:
                raise ValueError("a filled cache takes one position at a time")
            k_BHTD, v_BHTD = cache.extend(self.layer, k_BHTD, v_BHTD)
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=causal)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Normalize and attend, normalize and transform; each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=_NORM_EPS)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.width, eps=_NORM_EPS)
        self.mlp_in = nn.Linear(config.width, 4 * config.width, bias=False)
        self.mlp_out = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x_BTC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map the residual stream to the next block's."""
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), cache)
        wide = self.mlp_in(self.mlp_norm(x_BTC))
        return x_BTC + self.mlp_out(wide * torch.sigmoid(1.702 * wide))


class ImageGPT(nn.Module):
    """A transformer over the palette tokens of an image, pixel by pixel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.colours, config.width)
        self.start = nn.Parameter(torch.empty(config.width))
        self.positions = nn.Parameter(torch.empty(config.positions, config.width))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=_NORM_EPS)
        self.head = nn.Linear(config.width, config.colours, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights with OpenAI's standard deviations."""
        width, layers = self.config.width, self.config.layers
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.start, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in self.layers:
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=(width * layers) ** -0.5)
            nn.init.normal_(block.mlp_in.weight, std=0.02)
            nn.init.normal_(block.mlp_out.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    @property
    def layers(self) -> list[Block]:
        """The blocks, as what they are to a type checker."""
        return cast(list[Block], list(self.blocks))

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """The first block's input, [B, T, C]: start vector in front, last pixel dropped, positions added."""
        start_B1C = self.start.expand(len(tokens_BT), 1, -1)
        x_BTC = torch.cat([start_B1C, self.tokens(tokens_BT[:, :-1])], dim=1)
        return x_BTC + self.positions[: x_BTC.shape[1]]

    def embed_next(self, tokens_B: Tensor, position: int) -> Tensor:
        """The input for one position, given the token before it; [B, 1, C]."""
        return self.tokens(tokens_B[:, None]) + self.positions[position]

    def transform(self, x_BTC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Embedded inputs to logits over the colours, [B, T, K]; continues after the positions in the cache."""
        positions = x_BTC.shape[1]
        for block in self.layers:
            x_BTC = block(x_BTC, cache)
        if cache is not None:
            cache.filled += positions
        return self.head(self.norm(x_BTC))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of each pixel given those before it: tokens int64 [B, T] to [B, T, K]."""
        return self.transform(self.embed(tokens_BT))
