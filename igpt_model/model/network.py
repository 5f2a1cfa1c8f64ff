"""The Image GPT of Chen et al. 2020: the network only, without training, sampling or parallelism.

Differences from a standard GPT: RMS normalization with a gain only (eps 1e-5) before each half of a block, no biases,
the activation x * sigmoid(1.702 x), a learned start vector, learned positions, an output matrix that is not tied to the
embedding, and OpenAI's initial standard deviations (section 2.2 of the paper and its published code).

Shapes: B batch, P tokens of the small image, T pixels in raster order, S positions (P + T), C width, H heads, D width
per head, K colours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt_model.model.config import ModelConfig
from igpt_model.model.linear import Linear
from pipeline.errors import IgptError

_NORM_EPS = 1e-5
_SLOPE = 1.702


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Conditioning inputs of a batch of images; None where the model does not use one."""

    labels_B: Tensor | None = None
    """Class numbers, int64, for a class-conditional model."""
    low_BP: Tensor | None = None
    """Tokens of the small images, int64, for a super-resolution model."""
    start_offsets_BC: Tensor | None = None
    """While training: added to the start vectors, float32, to tell how an image was augmented."""

    def rows(self, which: slice | Tensor) -> "Condition":
        """The conditions of a subset of the images."""
        return Condition(
            labels_B=None if self.labels_B is None else self.labels_B[which],
            low_BP=None if self.low_BP is None else self.low_BP[which],
            start_offsets_BC=None if self.start_offsets_BC is None else self.start_offsets_BC[which],
        )


UNCONDITIONAL = Condition()


class LayerCache:
    """Keys and values of one layer at the positions so far, in memory allocated for all positions, [2, B, H, S, D]."""

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self.filled = 0

    def attend(self, qkv_3BHSD: Tensor) -> Tensor:
        """Store the keys and values of the next positions; attend from these to all so far, [B, H, S, D]."""
        steps = qkv_3BHSD.shape[3]
        if steps > 1 and self.filled:
            raise ValueError("a filled cache takes one position at a time")
        begin, self.filled = self.filled, self.filled + steps
        self._memory[:, :, :, begin : self.filled] = qkv_3BHSD[1:]
        keys_BHLD, values_BHLD = self._memory[:, :, :, : self.filled]
        return F.scaled_dot_product_attention(qkv_3BHSD[0], keys_BHLD, values_BHLD, is_causal=steps > 1)


class FixedLayerCache:
    """The same memory for a step whose shapes and addresses are the same at every position: [2, B, H, S, D].

    The position is read on the device, `place_1`, int64. Of the first `len(bias_L)` positions those are attended to
    whose bias is 0; it is -inf at those that are not filled.
    """

    def __init__(self, memory: Tensor, place_1: Tensor, bias_L: Tensor) -> None:
        self._memory, self._place_1, self._bias_L = memory, place_1, bias_L

    def attend(self, qkv_3BH1D: Tensor) -> Tensor:
        """Store the keys and values of a position; attend from it to all so far, [B, H, 1, D]."""
        self._memory.index_copy_(3, self._place_1, qkv_3BH1D[1:])
        keys_BHLD, values_BHLD = self._memory[:, :, :, : len(self._bias_L)]
        bias_111L = self._bias_L[None, None, None]
        return F.scaled_dot_product_attention(qkv_3BH1D[0], keys_BHLD, values_BHLD, attn_mask=bias_111L)


class KeyValueCache:
    """The caches of all layers, in memory allocated once: [layers, 2, B, H, S, D]."""

    def __init__(self, config: ModelConfig, batch: int, like: Tensor) -> None:
        shape = (config.layers, 2, batch, config.heads, config.sequence, config.width // config.heads)
        self.memory = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.layers: Sequence[LayerCache | FixedLayerCache] = [LayerCache(memory) for memory in self.memory]

    @staticmethod
    def bytes_per_image(config: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes that the cache takes for each image of a batch."""
        return 2 * config.layers * config.sequence * config.width * dtype.itemsize


class Norm(nn.RMSNorm):
    """RMS normalization with a gain, in the number format of its input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=_NORM_EPS)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Normalize the last dimension."""
        # FSDP2 may gather a gain in bfloat16; kernels want one format.
        return F.rms_norm(x_BSC, self.normalized_shape, self.weight.to(x_BSC.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head self-attention without biases: causal, or bidirectional in a masked model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, config.objective == "autoregressive"
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x_BSC: Tensor, cache: LayerCache | FixedLayerCache | None = None) -> Tensor:
        """Apply attention; with a cache, the cached positions precede those of `x_BSC`."""
        B, S, C = x_BSC.shape
        qkv_3BHSD = self.qkv(x_BSC).view(B, S, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            y_BHSD = cache.attend(qkv_3BHSD)
        else:
            q_BHSD, k_BHSD, v_BHSD = qkv_3BHSD
            y_BHSD = F.scaled_dot_product_attention(q_BHSD, k_BHSD, v_BHSD, is_causal=self.causal and S > 1)
        return self.out(y_BHSD.transpose(1, 2).reshape(B, S, C))


class Block(nn.Module):
    """A transformer block: attention and an MLP, each after a normalization and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = Norm(config.width)
        self.mlp_in = Linear(config.width, 4 * config.width)
        self.mlp_out = Linear(4 * config.width, config.width)

    def forward(self, x_BSC: Tensor, cache: LayerCache | FixedLayerCache | None = None) -> Tensor:
        """Map the residual stream, [B, S, C], to that of the next block."""
        x_BSC = x_BSC + self.attention(self.attention_norm(x_BSC), cache)
        # x sigmoid(1.702 x) equals silu(1.702 x) / 1.702. Without biases, the factors can be applied to the input and
        # output of the MLP: one kernel instead of three then passes over the hidden layer, which is four times as wide.
        wide = F.silu(self.mlp_in(_SLOPE * self.mlp_norm(x_BSC)))
        return torch.add(x_BSC, self.mlp_out(wide), alpha=1 / _SLOPE)


class ImageGPT(nn.Module):
    """A transformer over the palette tokens of an image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.colours, config.width)
        if config.classes is not None:
            self.class_starts = nn.Embedding(config.classes, config.width)
        elif config.objective == "autoregressive":
            self.start = nn.Parameter(torch.empty(config.width))
        if config.low_resolution is not None:
            self.low_positions = nn.Parameter(torch.empty(config.low_positions, config.width))
        self.positions = nn.Parameter(torch.empty(config.positions, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = Norm(config.width)
        self.head = Linear(config.width, config.colours)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the weights with OpenAI's standard deviations; gains stay 1."""
        for weight, std in self.initial_deviations():
            nn.init.normal_(weight, std=std)
        nn.init.zeros_(self.head.weight)

    def initial_deviations(self) -> Iterator[tuple[Tensor, float]]:
        """The weights that begin random and their standard deviations, in the order in which they are drawn."""
        config = self.config
        yield self.tokens.weight, 0.02
        if config.classes is not None:
            yield self.class_starts.weight, 0.02
        elif config.objective == "autoregressive":
            yield self.start, 0.02
        if config.low_resolution is not None:
            yield self.low_positions, 0.01
        yield self.positions, 0.01
        for block in self.layers:
            yield block.attention.qkv.weight, config.width**-0.5
            yield block.attention.out.weight, (config.width * config.layers) ** -0.5
            yield block.mlp_in.weight, 0.02
            yield block.mlp_out.weight, 0.02

    @property
    def layers(self) -> list[Block]:
        """The blocks, typed as `Block`."""
        return cast(list[Block], list(self.blocks))

    def embed(self, seen_BN: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        """The input embeddings of the first positions, [B, 1 + P + N, C]: start or class vector, small image, N pixels.

        The input that predicts a pixel is the token before it plus the position vector of that pixel.
        """
        parts = [self._starts(len(seen_BN), condition)[:, None], self.tokens(seen_BN)]
        positions_SC: Tensor = self.positions
        if self.config.low_resolution is not None:
            if condition.low_BP is None:
                raise IgptError("this model upscales: give the tokens of a small image as low_BP")
            parts.insert(1, self.tokens(condition.low_BP))
            positions_SC = torch.cat([self.low_positions, self.positions])
        x_BSC = torch.cat(parts, 1)
        return x_BSC + positions_SC[: x_BSC.shape[1]]

    def _starts(self, batch: int, condition: Condition) -> Tensor:
        """The start vector of each image, [B, C]."""
        if self.config.classes is None:
            starts_BC = self.start.expand(batch, -1)
        elif condition.labels_B is None:
            raise IgptError("this model is class-conditional: give the classes of the images as labels_B")
        else:
            starts_BC = self.class_starts(condition.labels_B)
        if condition.start_offsets_BC is None:
            return starts_BC
        return starts_BC + condition.start_offsets_BC.to(starts_BC.dtype)

    def embed_next(self, tokens_B: Tensor, position: int | Tensor) -> Tensor:
        """The input that predicts the pixel at `position` >= 1, from the token before it; [B, 1, C].

        A position that is on the device is int64 [1].
        """
        return self.tokens(tokens_B[:, None]) + self.positions[position]

    def embed_masked(self, tokens_BT: Tensor, masked_BT: Tensor | None) -> Tensor:
        """The inputs of a masked model, [B, T, C]: the embeddings of masked pixels are zero, positions added."""
        x_BTC = self.tokens(tokens_BT)
        if masked_BT is not None:
            x_BTC = x_BTC.masked_fill(masked_BT[:, :, None], 0)
        return x_BTC + self.positions

    def inputs(
        self, tokens_BT: Tensor, condition: Condition = UNCONDITIONAL, masked_BT: Tensor | None = None
    ) -> Tensor:
        """The first block's input for whole images, [B, S, C]."""
        if self.config.objective == "masked":
            return self.embed_masked(tokens_BT, masked_BT)
        return self.embed(tokens_BT[:, :-1], condition)

    def transform(self, x_BSC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Apply the blocks and the final normalization, [B, S, C]; with a cache, continue after its positions."""
        for number, block in enumerate(self.layers):
            x_BSC = block(x_BSC, None if cache is None else cache.layers[number])
        return self.norm(x_BSC)

    def forward(
        self, tokens_BT: Tensor, condition: Condition = UNCONDITIONAL, masked_BT: Tensor | None = None
    ) -> Tensor:
        """Logits of each pixel, [B, T, K], given the pixels before it, or in a masked model the unmasked pixels.

        Tokens and labels are int64; `masked_BT` is bool and for masked models only (None: no pixel is masked).
        """
        y_BSC = self.transform(self.inputs(tokens_BT, condition, masked_BT))
        return self.head(y_BSC[:, self.config.low_positions :])
