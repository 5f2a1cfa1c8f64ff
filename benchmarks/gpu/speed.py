"""Whole optimizer steps in bfloat16: images a second, the share of the card's own product rate, and memory."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.settings import Record, Settings
from benchmarks.measure_device import interleave, matrix_flops, memory_bandwidth
from benchmarks.train_step import Setting, contenders
from igpt_model.config import PretrainConfig
from pipeline.errors import first_line

_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What is measured once."""

    preset: str
    batch: int
    contender: str
    flash: bool = False
    """Whether attention is FlashAttention's; else what PyTorch chooses, on a Hopper card cuDNN's."""


_OURS, _NANO = "ours compiled", "nanoGPT-style compiled by block"
_TRIALS = (
    *(_Trial(preset="igpt-s", batch=64, contender=name) for name in (_OURS, _NANO)),
    _Trial(preset="igpt-s", batch=64, contender=_OURS, flash=True),
    *(_Trial(preset="igpt-m", batch=32, contender=name) for name in (_OURS, _NANO)),
    *(_Trial(preset="igpt-l", batch=16, contender=name) for name in (_OURS, _NANO)),
    _Trial(preset="igpt-s", batch=16, contender="Hugging Face"),
    _Trial(preset="igpt-s", batch=16, contender=_OURS),
    _Trial(preset="igpt-l", batch=16, contender=_OURS, flash=True),
    _Trial(preset="igpt-s", batch=128, contender=_OURS),
    _Trial(preset="igpt-l", batch=32, contender="ours compiled, recomputing"),
    _Trial(preset="igpt-m", batch=64, contender=_OURS),
    _Trial(preset="igpt-s", batch=256, contender=_OURS),
    _Trial(preset="igpt-s", batch=64, contender="nanoGPT-style compiled"),
)


def run(settings: Settings, record: Record) -> None:
    """Measure the ceilings, then one trial after the other."""
    device = settings.device
    peak = matrix_flops(device, torch.bfloat16)
    bandwidth = memory_bandwidth(device)
    record("Ceilings, measured", {"bfloat16 product, TFLOP/s": peak / 1e12, "a sum reads, GB/s": bandwidth / 1e9})
    first = {trial.contender: trial for trial in reversed(_TRIALS)}
    for trial in _TRIALS if settings.on_gpu else first.values():
        row: dict[str, object] = {"model": trial.preset, "batch": settings.images(trial.batch)}
        row["contender"] = trial.contender + (", FlashAttention" if trial.flash else "")
        try:
            row |= _measure(trial, settings, peak)
        except (torch.OutOfMemoryError, ImportError, RuntimeError) as error:
            row["error"] = f"{type(error).__name__}: {first_line(error)[:120]}"
        record("Whole optimizer steps in bfloat16", row)
        with _collected():
            torch.compiler.reset()


def _measure(trial: _Trial, settings: Settings, peak: float) -> dict[str, object]:
    model, device = settings.model(trial.preset), settings.device
    config = PretrainConfig.from_fields(
        runs="unused",
        preset="tiny",
        precision="bfloat16",
        learning_rate=1e-4,
        activation_checkpointing="recomputing" in trial.contender,
    )
    batch = settings.images(trial.batch)
    setting = Setting(model=model, batch=batch, device=device, config=config, optimizer=True)
    if settings.on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if trial.flash and settings.on_gpu else nullcontext():
        step = contenders(setting, [trial.contender])[trial.contender]
        warm_up(step, device)
        seconds = sorted(interleave({"step": step}, _ROUNDS if settings.on_gpu else 2, device)["step"])
    median = seconds[len(seconds) // 2]
    achieved = batch / median * model.flops_per_image
    row: dict[str, object] = {
        "ms a step": 1000 * median,
        "images/s": batch / median,
        "TFLOP/s": achieved / 1e12,
        "of the product rate": f"{achieved / peak:.1%}",
    }
    if settings.on_gpu:
        row["peak memory, GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    return row


def warm_up(step: Callable[[], object], device: torch.device) -> None:
    """Compile, and let the allocator and the kernels settle."""
    for _ in range(3):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _collected() -> Iterator[None]:
    """Leave nothing of a trial's memory to the next."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
