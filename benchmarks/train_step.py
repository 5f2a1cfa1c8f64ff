"""Training steps compared with Hugging Face's Image GPT and a compiled nanoGPT-style model, same weights and batch.

    python -m benchmarks.train_step                         # CPU, 6 layers, width 256, 16x16, several batches
    python -m benchmarks.train_step --device cuda           # GPU: S, M and L at 32x32 in bfloat16, whole steps

On a CPU it times forward and backward. On a GPU it times whole optimizer steps, and adds the achieved operations per
second, their share of the card's matrix-product rate, peak memory and the largest batch that fits.
"""

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import RESULTS
from benchmarks.measure_device import interleave, machine, matrix_flops, ratio, save
from benchmarks.peers import NanoGPT, hugging_face, our_model, their_inputs
from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.config import ModelConfig, preset_shape
from igpt_model.model.network import UNCONDITIONAL
from igpt_model.training.optim import make_optimizer
from igpt_model.training.parallel import autocast, prepare_blocks
from igpt_model.training.step import losses
from igpt_model.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The shape, precision and device of a measurement."""

    model: ModelConfig
    batch: int
    device: torch.device
    config: PretrainConfig
    optimizer: bool
    """Whether the optimizer's step belongs to what is timed."""


def contenders(setting: Setting, names: list[str]) -> dict[str, Callable[[], float]]:
    """For each contender, a function that does a step and returns the loss.

    Resets torch.compile: after two batch sizes it compiles for any size, and the steps would be timed with those slower
    kernels, which a training with one batch size does not run.
    """
    torch.compiler.reset()
    config, device = setting.model, setting.device
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, config.colours, (setting.batch, config.positions), generator=generator).to(device)
    inputs = Inputs(tokens_BT=tokens, condition=UNCONDITIONAL, masked_BT=None)
    shifted = their_inputs(tokens, config.colours)
    made: dict[str, Callable[[], float]] = {}
    for name in names:
        model: nn.Module
        loss: Callable[[], torch.Tensor]
        if name.startswith("ours"):
            ours = our_model(config, device)
            prepare_blocks(ours, setting.config.with_fields(compile="compiled" in name))
            model, loss = ours, lambda m=ours: losses(m, inputs).mean()
        elif name.startswith("Hugging Face"):
            model = hugging_face(our_model(config, device)).train()
            called = torch.compile(model) if "compiled" in name else model

            def loss(called: nn.Module = called) -> torch.Tensor:
                logits = called(shifted, use_cache=False).logits
                return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())

        else:
            with device:  # weights of a billion are drawn on a GPU in no time
                model = NanoGPT(config)
            called = torch.compile(model) if name.endswith("compiled") else model
            if "by block" in name:  # as ours are: in the time of one block
                for block in model.blocks:
                    block.compile()
            loss = lambda called=called: called(shifted, tokens)  # noqa: E731
        made[name] = _step(model, loss, setting)
    return made


def _step(model: nn.Module, loss: Callable[[], torch.Tensor], setting: Setting) -> Callable[[], float]:
    optimizer = make_optimizer(model, setting.config, Worker(device=setting.device)) if setting.optimizer else None

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with autocast(setting.config, setting.device):
            value = loss()
        value.backward()
        if optimizer is not None:
            nn.utils.clip_grad_norm_(model.parameters(), setting.config.optimizer.gradient_clip)
            optimizer.step()
        return float(value.detach())

    return step


def measure(setting: Setting, names: list[str], rounds: int, peak: float) -> list[dict[str, object]]:
    """A row for each contender that fits: its speed, and how many times longer it takes than the first."""
    steps = contenders(setting, names)
    first_losses = {name: step() for name, step in steps.items() if not setting.optimizer and "nanoGPT" not in name}
    assert not first_losses or max(first_losses.values()) - min(first_losses.values()) < 1e-4, first_losses
    seconds = interleave(steps, rounds, setting.device)
    rows: list[dict[str, object]] = []
    for name, measured in seconds.items():
        rate = setting.batch / min(measured)
        achieved = rate * setting.model.flops_per_image
        rows.append(
            {
                "layers, width, side": f"{setting.model.layers}, {setting.model.width}, {setting.model.resolution}",
                "batch": setting.batch,
                "contender": name,
                "images/s": rate,
                "TFLOP/s": achieved / 1e12,
                "of the product rate": f"{achieved / peak:.0%}",
                f"times longer than {names[0]}": ratio(measured, seconds[names[0]]),
                "_seconds": measured,
            }
        )
    return rows


def memory_of_a_step(setting: Setting, name: str) -> float:
    """Peak GPU memory of a contender's step, in GiB. Raises torch.OutOfMemoryError when it does not fit."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setting.device)
    step = contenders(setting, [name])[name]
    step()
    step()
    return torch.cuda.max_memory_allocated(setting.device) / 2**30


def largest_batch(setting: Setting, name: str) -> int:
    """The largest batch, a power of two, that fits into memory for a step; 0 if not even one image fits."""
    fits = 0
    with suppress(torch.OutOfMemoryError):
        for power in range(13):
            memory_of_a_step(replace(setting, batch=2**power), name)
            fits = 2**power
    return fits


def measure_on_gpu(setting: Setting, names: list[str], rounds: int, peak: float) -> list[dict[str, object]]:
    """Each contender at its own largest batch, then the first against each other one at a batch that fits for both.

    Two at a time, because the weights and optimizers of all may not fit together.
    """
    rows = []
    largest = {name: largest_batch(setting, name) for name in names}
    for name, batch in largest.items():
        if batch:
            alone = replace(setting, batch=batch)
            memory = memory_of_a_step(alone, name)
            (row,) = measure(alone, [name], rounds, peak)
            rows.append({**row, "batch": f"{batch}, the largest, {memory:.0f} GiB"})
    for peer in names[1:]:
        batch = min(largest[names[0]], largest[peer])
        while batch:
            try:
                rows += measure(replace(setting, batch=batch), [names[0], peer], rounds, peak)
                break
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                batch //= 2
    return rows


def show_profile(setting: Setting, name: str) -> None:
    """Print a profile of a contender's step."""
    step = contenders(setting, [name])[name]
    step()
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if setting.device.type == "cuda" else [])
    with profile(activities=kinds) as profiled:
        for _ in range(3):
            step()
    key = "self_cuda_time_total" if setting.device.type == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--presets",
        nargs="*",
        default=None,
        help="default: S, M and L on a GPU, else the layers, width and heads below",
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=None)
    parser.add_argument("--batches", type=int, nargs="*", default=None)
    parser.add_argument("--precision", default=None, choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--whole-steps", action="store_true", help="time the optimizer too, as on a GPU")
    parser.add_argument("--profile", action="store_true", help="print a profile instead of measuring")
    parser.add_argument("--output", type=Path, default=None, help="result files, without extension")
    options = parser.parse_args()
    device, on_gpu = torch.device(options.device), options.device == "cuda"
    if options.threads:
        torch.set_num_threads(options.threads)
    described = machine(device)
    precision = options.precision or ("bfloat16" if on_gpu else "float32")
    whole = on_gpu or options.whole_steps
    resolution = options.resolution or (32 if on_gpu else 16)
    names = ["ours", "ours compiled", "Hugging Face"]
    if whole:
        names = ["ours compiled", "ours", "nanoGPT-style compiled", "Hugging Face"]
    presets = options.presets if options.presets is not None else ["igpt-s", "igpt-m", "igpt-l"] if on_gpu else []
    shapes = [(s.layers, s.width, s.heads) for s in map(preset_shape, presets)]
    peak = matrix_flops(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    rows: list[dict[str, object]] = []
    for layers, width, heads in shapes or [(options.layers, options.width, options.heads)]:
        model = ModelConfig(layers=layers, width=width, heads=heads, resolution=resolution, colours=512)
        config = PretrainConfig.from_fields(runs="unused", preset="tiny", precision=precision)
        setting = Setting(model=model, batch=1, device=device, config=config, optimizer=whole)
        if options.profile:
            show_profile(replace(setting, batch=(options.batches or [8])[0]), names[0])
        elif on_gpu:
            rows += measure_on_gpu(setting, names, options.rounds, peak)
        else:
            for batch in options.batches or [8, 16, 32, 64]:
                rows += measure(replace(setting, batch=batch), names, options.rounds, peak)
    if rows:
        what = "whole optimizer steps" if whole else "forward and backward"
        notes = (
            f"{what}, {precision}, 512 colours. The matrix-product rate measured on this device is "
            f"{peak / 1e12:.3g} TFLOP/s."
        )
        save(options.output or RESULTS / f"train_step-{options.device}", "Training steps", described, rows, notes)


if __name__ == "__main__":
    main()
