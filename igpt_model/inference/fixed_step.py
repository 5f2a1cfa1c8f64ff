"""Draws pixels in steps with fixed shapes and addresses, which a GPU replays as a CUDA graph.

A step draws one pixel per image with about three hundred small kernels; if they were launched one by one, the GPU would
wait for each. A graph reads a fixed length of the cache, and there is a graph for each of a few lengths: reading all of
the cache at every position would take up to twice as long.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from igpt_model.model.network import Condition, FixedLayerCache, ImageGPT, KeyValueCache

_LENGTHS = 4
_MULTIPLE = 8  # positions; attention kernels with a bias want lengths that are multiples of it
_TELL_EVERY = 64  # positions
# cuDNN builds a plan for each new length. That pays for the few lengths of the steps: for one position, it reads the
# cache two to four times as fast as the memory-efficient kernel (benchmarks/results/gpu-h200.md).
_FOR_STEPS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_FOR_THE_KNOWN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Choose = Callable[[Tensor, Tensor], Tensor]
"""Draws colours, int64 [B], from logits [B, K] and uniform numbers [B]."""


@torch.inference_mode()
def fill(
    model: ImageGPT,
    tokens_BT: Tensor,
    known_BT: Tensor,
    condition: Condition,
    drawn_BT: Tensor,
    choose: Choose,
    tell: Callable[[int], None],
) -> None:
    """Draw the unknown pixels into `tokens_BT`, in raster order; `tell` is called with the number done so far.

    On a GPU, that must be the current device.
    """
    unknown = (~known_BT).any(0).nonzero().flatten().tolist()
    if not unknown:
        return
    first, last = unknown[0], unknown[-1]
    cache = KeyValueCache(model.config, len(tokens_BT), model.positions)
    with sdpa_kernel(_FOR_THE_KNOWN):
        y_BSC = model.transform(model.embed(tokens_BT[:, :first], condition), cache)
    step = _Step(model, cache, tokens_BT, known_BT, drawn_BT, choose)
    step.write(model.head(y_BSC[:, -1:])[:, 0], torch.tensor([first], device=tokens_BT.device))
    step.place_1.fill_(first + 1)
    position, before = first + 1, model.config.low_positions
    with sdpa_kernel(_FOR_STEPS, set_priority=True):
        for length in _lengths(model.config.sequence):
            end = min(last + 1, length - before)
            while position < end:
                step(length)
                position += 1
                if position % _TELL_EVERY == 0:
                    if tokens_BT.device.type == "cuda":
                        torch.cuda.synchronize(tokens_BT.device)  # report finished pixels, not queued ones
                    tell(position)


def _lengths(sequence: int) -> list[int]:
    """The lengths of the cache that steps read; the last is the whole cache."""
    stretch = -(-sequence // (_LENGTHS * _MULTIPLE)) * _MULTIPLE
    return [min(length, sequence) for length in range(stretch, sequence + stretch, stretch)]


class _Step:
    """Draws the pixel at `place_1`, and moves on to the next."""

    def __init__(
        self,
        model: ImageGPT,
        cache: KeyValueCache,
        tokens_BT: Tensor,
        known_BT: Tensor,
        drawn_BT: Tensor,
        choose: Choose,
    ) -> None:
        self._model, self._cache, self._choose = model, cache, choose
        self._tokens_BT, self._known_BT, self._drawn_BT = tokens_BT, known_BT, drawn_BT
        self.place_1 = torch.zeros(1, dtype=torch.int64, device=tokens_BT.device)
        self._places_S = torch.arange(model.config.sequence, device=tokens_BT.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = self._stream = None
        if tokens_BT.device.type == "cuda":
            # Without a stream of its own, the graph would be captured on the first device that ever made a graph.
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(tokens_BT.device)

    def __call__(self, length: int) -> None:
        """Run a step that reads the first `length` positions of the cache; captures a graph for each new length."""
        if length in self._graphs:
            self._graphs[length].replay()
            return
        self._step(length)
        if self._pool is not None:
            self._graphs[length] = torch.cuda.CUDAGraph()  # kept: the shared memory pool is freed with its last graph
            with torch.cuda.graph(self._graphs[length], pool=self._pool, stream=self._stream):
                self._step(length)

    def _step(self, length: int) -> None:
        model, place_1 = self._model, self.place_1
        in_sequence_1 = place_1 + model.config.low_positions
        unfilled_L = self._places_S[:length] > in_sequence_1
        bias_L = torch.zeros(length, dtype=model.positions.dtype, device=place_1.device)
        bias_L = bias_L.masked_fill(unfilled_L, float("-inf"))
        self._cache.layers = [FixedLayerCache(memory, in_sequence_1, bias_L) for memory in self._cache.memory]
        before_B = self._tokens_BT.index_select(1, place_1 - 1)[:, 0]
        y_B1C = model.transform(model.embed_next(before_B, place_1), self._cache)
        self.write(model.head(y_B1C)[:, 0], place_1)
        place_1.add_(1)

    def write(self, logits_BK: Tensor, place_1: Tensor) -> None:
        """Draw the pixel at a place from its logits, except in images where it is known."""
        tokens_B, known_B, drawn_B = (
            values.index_select(1, place_1)[:, 0] for values in (self._tokens_BT, self._known_BT, self._drawn_BT)
        )
        chosen_B = torch.where(known_B, tokens_B, self._choose(logits_BK, drawn_B))
        self._tokens_BT.index_copy_(1, place_1, chosen_B[:, None])
