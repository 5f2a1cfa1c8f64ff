"""Samples images from an autoregressive model, optionally as completions of known pixels."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from igpt_model.inference import fixed_step
from igpt_model.inference.precision import in_bfloat16
from igpt_model.model.linear import Linear, PackedLinear
from igpt_model.model.network import UNCONDITIONAL, Condition, ImageGPT, KeyValueCache
from igpt_model.model.randomness import uniform
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent

_CPU_CACHE_BYTES = 1 << 30

Watch = Callable[[Tensor, Tensor], None]
"""Called as pixels are drawn, with the tokens, int64 [B, T], and the number of leading pixels that are final, [B].

Tokens behind those change in place. What it raises ends the drawing.
"""


def unwatched(tokens_BT: Tensor, done_B: Tensor) -> None:
    """A watch that does nothing."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Sampling parameters."""

    temperature: float = 1.0
    """Divisor of the logits: below 1 sharpens the distribution, 0 takes the most likely colour."""
    top_k: int | None = None
    """Sample only from this many most likely colours; none: all."""
    top_p: float | None = None
    """After top_k, sample only from the fewest most likely colours whose probabilities add up to this; none: all."""
    seed: int = 0
    """The same seed gives the same images for any batch size, up to rounding of the logits; see `complete`."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise IgptError(f"temperature is {self.temperature}: it must be 0 or more; 1 changes nothing")
        if self.top_k is not None and self.top_k < 1:
            raise IgptError(f"top_k is {self.top_k}: it must be at least 1; leave it out to draw from all colours")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise IgptError(f"top_p is {self.top_p}: it must be above 0 and at most 1; leave it out to draw from all")


def draw(
    model: ImageGPT,
    count: int,
    drawing: Drawing = Drawing(),
    *,
    condition: Condition = UNCONDITIONAL,
    draws: int | None = None,
    cache_bytes: int | None = None,
    progress: Progress = silent,
    watch: Watch = unwatched,
) -> Tensor:
    """Sample whole images, int64 [count, T]. Otherwise like `complete`, where an image is what the condition gives."""
    tokens_BT = torch.zeros(count, model.config.positions, dtype=torch.int64, device=model.positions.device)
    known_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    return complete(
        model,
        tokens_BT,
        known_BT,
        drawing,
        condition=condition,
        draws=draws,
        cache_bytes=cache_bytes,
        progress=progress,
        watch=watch,
    )


@torch.inference_mode()
def complete(
    model: ImageGPT,
    tokens_BT: Tensor,
    known_BT: Tensor,
    drawing: Drawing = Drawing(),
    *,
    condition: Condition = UNCONDITIONAL,
    draws: int | None = None,
    cache_bytes: int | None = None,
    progress: Progress = silent,
    watch: Watch = unwatched,
) -> Tensor:
    """Sample the unknown pixels of images; tokens int64 [B, T], known_BT bool [B, T], to int64 [B, T].

    Pixels are sampled in raster order, each given all pixels before it, known or sampled. If the known pixels come
    first, the results are samples of the model's distribution given them. Known pixels after unknown ones are kept, but
    do not influence the unknown pixels before them: an autoregressive model cannot look ahead.

    With `draws`, so many rows in a row are draws of one image, and a row depends on its image and the number of its
    draw, not on the images before it: the same draw of any image uses the same random numbers. Without, every row uses
    numbers of its own.

    Any number of images is sampled, in batches whose keys and values fit into `cache_bytes` (none: 1 GiB, or on a GPU
    half of the free memory). `watch` sees the images grow. Raises IgptError for a masked model.
    """
    if model.config.objective == "masked":
        raise IgptError("a masked model cannot draw images: it gives no distribution of one pixel after another")
    if model.positions.device.type == "cuda" and model.positions.dtype == torch.float32:
        model = in_bfloat16(model)  # each position then reads half as many bytes of weights and cache
    batch = images_at_once(model, cache_bytes)
    model = _packed(model, min(batch, len(tokens_BT)))
    positions = model.config.positions
    result_BT = tokens_BT.clone(memory_format=torch.contiguous_format)  # of rows that are expanded, too
    done_B = torch.zeros(len(tokens_BT), dtype=torch.int64)
    for begin in range(0, len(tokens_BT), batch):
        rows = slice(begin, begin + batch)
        part_BT, part_known_BT = result_BT[rows], known_BT[rows]
        numbers_B = torch.arange(begin, begin + len(part_BT), device=tokens_BT.device)
        if draws is not None:
            numbers_B %= draws
        drawn_BT = uniform(drawing.seed, "draw", numbers_B, positions)
        choose = partial(_choose, drawing=drawing)

        def tell(done: int, begin: int = begin, images: int = len(part_BT)) -> None:
            progress("draw", begin * positions + images * done, len(tokens_BT) * positions, "pixels")
            done_B[begin : begin + images] = done
            watch(result_BT, done_B)

        on_gpu = tokens_BT.device.type == "cuda"
        fill = fixed_step.fill if on_gpu else _fill
        with torch.cuda.device(tokens_BT.device) if on_gpu else nullcontext():  # need not be the first GPU
            fill(model, part_BT, part_known_BT, condition.rows(rows), drawn_BT, choose, tell)
        tell(positions)
    return result_BT


def _fill(
    model: ImageGPT,
    tokens_BT: Tensor,
    known_BT: Tensor,
    condition: Condition,
    drawn_BT: Tensor,
    choose: fixed_step.Choose,
    tell: Callable[[int], None],
) -> None:
    """As fixed_step.fill, by steps that read no more of the cache than is filled: the faster way on a CPU."""
    for position, logits_BK in _steps(model, tokens_BT, known_BT, condition):
        choice_B = choose(logits_BK, drawn_BT[:, position])
        tokens_BT[:, position] = torch.where(known_BT[:, position], tokens_BT[:, position], choice_B)
        tell(position + 1)


def _steps(model: ImageGPT, tokens_BT: Tensor, known_BT: Tensor, condition: Condition) -> Iterator[tuple[int, Tensor]]:
    """The positions from the first to the last one that is unknown in any image, with their logits, [B, K].

    The caller must write the tokens of a position before it requests the next one.
    """
    unknown = (~known_BT).any(0).nonzero().flatten().tolist()
    if not unknown:
        return
    first, last = unknown[0], unknown[-1]
    cache = KeyValueCache(model.config, len(tokens_BT), model.positions)
    y_BSC = model.transform(model.embed(tokens_BT[:, :first], condition), cache)
    yield first, model.head(y_BSC[:, -1:])[:, 0]
    for position in range(first + 1, last + 1):
        y_B1C = model.transform(model.embed_next(tokens_BT[:, position - 1], position), cache)
        yield position, model.head(y_B1C)[:, 0]


def _choose(logits_BK: Tensor, drawn_B: Tensor, drawing: Drawing) -> Tensor:
    """Colours for random numbers in [0, 1) by inverse transform sampling, int64 [B]."""
    if drawing.temperature == 0:
        return logits_BK.argmax(1)
    logits_BK = logits_BK.float() / drawing.temperature
    if drawing.top_k is not None and drawing.top_k < logits_BK.shape[1]:
        # By index: in bfloat16 several logits often equal the least of them.
        likeliest = logits_BK.topk(drawing.top_k)
        logits_BK = torch.full_like(logits_BK, float("-inf")).scatter(1, likeliest.indices, likeliest.values)
    # In float64, so that a number below 1 stays below the sum, and a colour of probability 0 is never sampled.
    probabilities_BK = logits_BK.double().softmax(1)
    if drawing.top_p is not None and drawing.top_p < 1:
        sorted_BK, order_BK = probabilities_BK.sort(1, descending=True)
        before_BK = sorted_BK.cumsum(1) - sorted_BK
        kept_BK = torch.where(before_BK < drawing.top_p, sorted_BK, 0)
        probabilities_BK = torch.zeros_like(kept_BK).scatter_(1, order_BK, kept_BK)
    cumulative_BK = probabilities_BK.cumsum(1)
    return torch.searchsorted(cumulative_BK, (drawn_B.double() * cumulative_BK[:, -1])[:, None], right=True)[:, 0]


def images_at_once(model: ImageGPT, cache_bytes: int | None) -> int:
    """The number of images whose keys and values fit into memory, at least one."""
    device = model.positions.device
    if cache_bytes is None:
        cache_bytes = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_CACHE_BYTES
    return max(1, cache_bytes // KeyValueCache.bytes_per_image(model.config, model.positions.dtype))


def _packed(model: ImageGPT, rows: int) -> ImageGPT:
    """The model with its weights packed for steps of a few rows, if that is faster."""
    if not PackedLinear.suits(model.head.weight):
        return model
    with torch.device("meta"):
        packed = ImageGPT(model.config)
    packed.load_state_dict(model.state_dict(), assign=True)
    for module in packed.modules():
        for name, child in module.named_children():
            if isinstance(child, Linear):
                setattr(module, name, PackedLinear(child.weight, rows))
    return packed
