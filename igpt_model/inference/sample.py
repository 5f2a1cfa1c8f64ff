"""Drawing images from an autoregressive model: from nothing, or as completions of any known pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from igpt_model.inference import fixed_step
from igpt_model.model.linear import Linear, PackedLinear
from igpt_model.model.network import UNCONDITIONAL, Condition, ImageGPT, KeyValueCache
from igpt_model.model.randomness import uniform
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent

_CPU_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pixels are drawn from the model's distributions."""

    temperature: float = 1.0
    """What logits are divided by: below 1 sharpens, 0 takes the likeliest colour."""
    top_k: int | None = None
    """Only this many likeliest colours are drawn; none: all."""
    top_p: float | None = None
    """Only the fewest likeliest colours whose probabilities add up to this are drawn, after top_k; none: all."""
    seed: int = 0
    """The same seed draws the same images, however the batch is split, up to the rounding of the logits."""

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
    cache_bytes: int | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Draw whole images; int64 [count, T]. Otherwise as `complete`."""
    tokens_BT = torch.zeros(count, model.config.positions, dtype=torch.int64, device=model.positions.device)
    known_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    return complete(
        model, tokens_BT, known_BT, drawing, condition=condition, cache_bytes=cache_bytes, progress=progress
    )


@torch.inference_mode()
def complete(
    model: ImageGPT,
    tokens_BT: Tensor,
    known_BT: Tensor,
    drawing: Drawing = Drawing(),
    *,
    condition: Condition = UNCONDITIONAL,
    cache_bytes: int | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Draw the pixels that are not known, bool [B, T] says which are; int64 [B, T] to int64 [B, T].

    Pixels are drawn in raster order, each from the model's distribution given all pixels before it, known or drawn.
    Where the known pixels come first, these are samples of the model's distribution given them. A known pixel that
    stands behind unknown ones is kept, but the unknown ones before it were drawn without regard to it: an
    autoregressive model cannot look ahead.

    Any number of images is drawn, as many at a time as have room for their keys and values in `cache_bytes` (none:
    1 GiB, on a GPU half of what is free). Raises IgptError for a model that cannot draw.
    """
    if model.config.objective == "masked":
        raise IgptError("a masked model cannot draw images: it gives no distribution of one pixel after another")
    model = _in_bfloat16(model)
    batch = images_at_once(model, cache_bytes)
    model = _packed(model, min(batch, len(tokens_BT)))
    positions = model.config.positions
    parts = []
    for begin in range(0, len(tokens_BT), batch):
        rows = slice(begin, begin + batch)
        part_BT, part_known_BT = tokens_BT[rows].clone(), known_BT[rows]
        numbers_B = torch.arange(begin, begin + len(part_BT), device=tokens_BT.device)
        drawn_BT = uniform(drawing.seed, "draw", numbers_B, positions)
        choose = partial(_choose, drawing=drawing)

        def tell(done: int, begin: int = begin, images: int = len(part_BT)) -> None:
            progress("draw", begin * positions + images * done, len(tokens_BT) * positions, "pixels")

        fill = fixed_step.fill if tokens_BT.device.type == "cuda" else _fill
        fill(model, part_BT, part_known_BT, condition.rows(rows), drawn_BT, choose, tell)
        tell(positions)
        parts.append(part_BT)
    return torch.cat(parts) if parts else tokens_BT.clone()


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
    """The positions from the first to the last that is unknown in any image, each with the logits there, [B, K].

    Whoever iterates writes a position's tokens before asking for the next.
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
    """The colours that numbers in [0, 1) stand for, int64 [B]: the inverse of the cumulative distribution."""
    if drawing.temperature == 0:
        return logits_BK.argmax(1)
    logits_BK = logits_BK.float() / drawing.temperature
    if drawing.top_k is not None and drawing.top_k < logits_BK.shape[1]:
        least_B1 = logits_BK.topk(drawing.top_k).values[:, -1:]
        logits_BK = logits_BK.masked_fill(logits_BK < least_B1, float("-inf"))
    # In float64, so that the largest number below 1 stays below the sum, and a colour of probability 0 is never drawn.
    probabilities_BK = logits_BK.double().softmax(1)
    if drawing.top_p is not None and drawing.top_p < 1:
        sorted_BK, order_BK = probabilities_BK.sort(1, descending=True)
        before_BK = sorted_BK.cumsum(1) - sorted_BK
        kept_BK = torch.where(before_BK < drawing.top_p, sorted_BK, 0)
        probabilities_BK = torch.zeros_like(kept_BK).scatter_(1, order_BK, kept_BK)
    cumulative_BK = probabilities_BK.cumsum(1)
    return torch.searchsorted(cumulative_BK, (drawn_B.double() * cumulative_BK[:, -1])[:, None], right=True)[:, 0]


def images_at_once(model: ImageGPT, cache_bytes: int | None) -> int:
    """How many images' keys and values fit into memory, at least one."""
    device = model.positions.device
    if cache_bytes is None:
        cache_bytes = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_CACHE_BYTES
    return max(1, cache_bytes // KeyValueCache.bytes_per_image(model.config, model.positions.dtype))


def _in_bfloat16(model: ImageGPT) -> ImageGPT:
    """On a GPU the same model in bfloat16: each position then reads half as many bytes of weights and cache."""
    if model.positions.device.type != "cuda" or model.positions.dtype != torch.float32:
        return model
    with torch.device("meta"):
        half = ImageGPT(model.config)
    half.load_state_dict({name: value.bfloat16() for name, value in model.state_dict().items()}, assign=True)
    return half


def _packed(model: ImageGPT, rows: int) -> ImageGPT:
    """The same model with its matrices laid out for steps of a few rows, where that is faster."""
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
