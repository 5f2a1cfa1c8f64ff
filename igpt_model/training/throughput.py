"""Throughput metrics of training: speed, utilization, and the share of time spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from igpt_model.config import PretrainConfig
from igpt_model.model.config import ModelConfig
from igpt_model.model.linear import Linear
from igpt_model.worker import Worker

_PRODUCT_SIDE = {"cuda": 8192, "cpu": 512}
_PRODUCTS = 10


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product as layers compute it, the reference."""
    side = _PRODUCT_SIDE.get(device.type, _PRODUCT_SIDE["cpu"])
    # A separate generator, which leaves the random state of training unchanged.
    generator = torch.Generator(device).manual_seed(0)
    a_BSC, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    a_BSC = a_BSC[None]
    layer = Linear(side, side)
    layer.weight = nn.Parameter(b, requires_grad=False)
    seconds = []
    with torch.inference_mode():
        for _ in range(_PRODUCTS):
            began = time.perf_counter()
            layer(a_BSC)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


class Throughput:
    """Times the steps of a worker, and the time they wait for images."""

    def __init__(self, model: ModelConfig, config: PretrainConfig, worker: Worker) -> None:
        dtype = torch.bfloat16 if config.training_precision == "bfloat16" else torch.float32
        self._images, self._pixels, self._flops = config.optimizer.global_batch, model.positions, model.flops_per_image
        self._reference_flops = worker.world_size * product_rate(worker.device, dtype) if worker.rank == 0 else 1.0
        self._clear()

    def _clear(self) -> None:
        self._steps, self._seconds, self._waiting = 0, 0.0, 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step; evaluations and other work between steps is not counted."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time how long a step waits for its images."""
        began = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - began

    def values(self) -> dict[str, float]:
        """Metrics over the steps since the last call, of all workers; `data_wait_share` is of this worker."""
        if not self._steps:
            return {}
        images = self._steps * self._images / self._seconds
        # Other programs may have kept the machine busy while the reference was measured.
        self._reference_flops = max(self._reference_flops, images * self._flops)
        values = {
            "images_per_second": images,
            "tokens_per_second": images * self._pixels,
            "flop_utilization": images * self._flops / self._reference_flops,
            "data_wait_share": self._waiting / self._seconds,
        }
        self._clear()
        return values
