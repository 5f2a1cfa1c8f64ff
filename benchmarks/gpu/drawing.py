"""Seconds to draw whole images with S, and which way to attend from one position is the fastest."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.settings import Record, Settings
from benchmarks.measure_device import interleave, memory_bandwidth, synchronize
from benchmarks.peers import our_model
from benchmarks.sample import bytes_read
from igpt_model.inference import sample
from igpt_model.inference.sample import Drawing, draw
from igpt_model.model.network import UNCONDITIONAL, ImageGPT
from igpt_model.model.randomness import uniform
from pipeline.errors import first_line

_NEVER_SPLIT = 1 << 50
_PLAIN = 32  # pixels of each image: an attention kernel may be planned anew for each


@torch.inference_mode()
def run(settings: Settings, record: Record) -> None:
    """Whole images at three batches, the plain steps beside them at one; then attention alone."""
    device = settings.device
    config = settings.model("igpt-s")
    bandwidth = memory_bandwidth(device)
    model = our_model(config, device).eval()
    for batch in (16, 64, 256) if settings.on_gpu else (2,):
        run_ours = partial(draw, model, batch, Drawing(), cache_bytes=_NEVER_SPLIT)
        first = _seconds(run_ours, device)
        seconds = interleave({"ours": run_ours}, 1, device)["ours"]
        bound = bytes_read(config, batch, torch.bfloat16) / bandwidth
        record(
            "Drawing 32x32 with S in bfloat16",
            {
                "images": batch,
                "seconds": min(seconds),
                "of the first in a process": first,
                "images/s": batch / min(seconds),
                "of the bandwidth bound": f"{bound / min(seconds):.1%}" if settings.on_gpu else "",
            },
        )
        if batch <= 16:
            half = our_model(config, device).bfloat16().eval()
            plain = interleave({"plain": partial(_plain, half, batch)}, 1, device)["plain"][0]
            record("Plain steps, kernel by kernel", {"images": batch, "pixels of each": _PLAIN, "seconds": plain})
    for batch in (16, 256) if settings.on_gpu else (2,):
        for length in (256, 1024) if settings.on_gpu else (8,):
            _compare_attention(settings, record, batch, length)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def _plain(model: ImageGPT, batch: int) -> None:
    """Draw the first pixels as a CPU does, kernel by kernel."""
    device = model.positions.device
    tokens_BT = torch.zeros(batch, model.config.positions, dtype=torch.int64, device=device)
    drawn_BT = uniform(0, "draw", torch.arange(batch, device=device), model.config.positions)
    known_BT = (torch.arange(model.config.positions, device=device) >= _PLAIN).expand_as(tokens_BT)
    choose = partial(sample._choose, drawing=Drawing())
    sample._fill(model, tokens_BT, known_BT, UNCONDITIONAL, drawn_BT, choose, lambda done: None)


def _compare_attention(settings: Settings, record: Record, batch: int, length: int) -> None:
    """Time what attends from one position to `length` cached ones, of eight heads of 64, for all layers of S."""
    device, heads, width = settings.device, 8, 64
    dtype = torch.bfloat16
    keys, values = (
        [torch.randn(batch, heads, length, width, device=device, dtype=dtype) for _ in range(4)] for _ in range(2)
    )
    query = torch.randn(batch, heads, 1, width, device=device, dtype=dtype)
    bias_L = torch.zeros(length, device=device, dtype=dtype)
    bias_L[length * 3 // 4 :] = float("-inf")
    expected = F.scaled_dot_product_attention(
        query.double(), keys[0].double(), values[0].double(), attn_mask=bias_L.double()[None, None, None]
    )
    reading = 2 * batch * heads * length * width * dtype.itemsize
    for name, attend in _ways(bias_L, batch, heads, length, device).items():
        row: dict[str, object] = {"images": batch, "positions": length, "way": name}
        try:
            found = attend(query, keys[0], values[0])
            row["relative error"] = ((found.double() - expected).norm() / expected.norm()).item()
            seconds = _replayed(attend, query, keys, values, device)
            row |= {"microseconds": 1e6 * seconds, "GB/s read": reading / seconds / 1e9}
        except (RuntimeError, TypeError) as error:
            row["error"] = first_line(error)[:100]
        record("Attention from one position, a layer", row)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _ways(bias_L: Tensor, batch: int, heads: int, length: int, device: torch.device) -> dict[str, Attend]:
    bias = bias_L[None, None, None]

    def backend(which: SDPBackend, masked: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(which):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias if masked else None)

    def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query @ key.transpose(2, 3)).float() * query.shape[-1] ** -0.5 + bias
        return weights.softmax(-1).to(value.dtype) @ value

    def sums(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query.float() * key.float()).sum(-1) * query.shape[-1] ** -0.5 + bias[0]
        return (weights.softmax(-1)[..., None] * value.float()).sum(2, keepdim=True).to(value.dtype)

    starts = torch.arange(batch + 1, device=device, dtype=torch.int32)
    used = torch.full((batch,), length * 3 // 4, device=device, dtype=torch.int32)

    def varlen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """FlashAttention over the used part of each image's cache, which is kept position by position."""
        key_NHD, value_NHD = (x.reshape(batch * length, heads, -1) for x in (key, value))
        out_BHD = torch.ops.aten._flash_attention_forward(
            *(query.reshape(batch, heads, -1), key_NHD, value_NHD, starts, starts * length, 1, length),
            *(0.0, False, False),
            seqused_k=used,
        )[0]
        return out_BHD[:, :, None]

    ways: dict[str, Attend] = {
        "memory-efficient, bias": partial(backend, SDPBackend.EFFICIENT_ATTENTION, True),
        "cuDNN, bias": partial(backend, SDPBackend.CUDNN_ATTENTION, True),
        "FlashAttention, no bias (another result)": partial(backend, SDPBackend.FLASH_ATTENTION, False),
        "two products": products,
        "sums, compiled": torch.compile(sums, dynamic=False),
        "FlashAttention, used lengths (of other memory)": varlen,
    }
    if device.type == "cpu":
        return {name: ways[name] for name in ("two products", "sums, compiled")}
    return ways


def _replayed(attend: Attend, query: Tensor, keys: list[Tensor], values: list[Tensor], device: torch.device) -> float:
    """Seconds of one call, of many in a CUDA graph over several layers' keys; on a CPU one after the other."""

    def all_of_them() -> None:
        for key, value in zip(keys, values, strict=True):
            attend(query, key, value)

    all_of_them()
    synchronize(device)
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        calls: Callable[[], object] = graph.replay
    else:
        calls = all_of_them
    return min(interleave({"calls": lambda: [calls() for _ in range(10)]}, 3, device)["calls"]) / (10 * len(keys))
