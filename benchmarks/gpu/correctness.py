"""Whether the device computes what a CPU does in float64: losses, gradients, drawing; and the attention kernels."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.settings import Record, Settings
from benchmarks.peers import our_model
from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.inference import fixed_step, sample
from igpt_model.inference.sample import Drawing
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import UNCONDITIONAL, Condition, ImageGPT
from igpt_model.model.randomness import uniform
from igpt_model.training.parallel import prepare_blocks
from igpt_model.training.step import losses

_LAYERS = 6
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class _Way:
    """One way to compute a gradient on the device."""

    autocast: bool = False
    tf32: bool = False
    compiled: bool = False
    recomputing: bool = False


_WAYS = {
    "float32": _Way(),
    "float32, TF32 allowed": _Way(tf32=True),
    "bfloat16": _Way(autocast=True),
    "bfloat16, compiled": _Way(autocast=True, compiled=True),
    "bfloat16, compiled, recomputing": _Way(autocast=True, compiled=True, recomputing=True),
}


def run(settings: Settings, record: Record) -> None:
    """Every kind of model in float32; the autoregressive one in every way; then drawing."""
    config = replace(settings.model("igpt-s"), layers=_LAYERS if settings.on_gpu else 2)
    small = replace(config, layers=2, width=config.width // 4, resolution=config.resolution // 2)
    kinds = {
        "masked": replace(small, objective="masked"),
        "class-conditional": replace(small, classes=10),
        "super-resolution": replace(small, low_resolution=small.resolution // 2),
    }
    for name, kind in kinds.items():
        _compare(settings, record, name, kind, {"float32": _WAYS["float32"]})
    _compare(settings, record, "autoregressive", config, _WAYS)
    _compare_drawing(settings, record, config)


def _compare(settings: Settings, record: Record, name: str, config: ModelConfig, ways: dict[str, _Way]) -> None:
    tokens_BT = _tokens(config, settings.images(4))
    reference = our_model(config, _CPU).double()
    weights = reference.state_dict()
    expected = losses(reference, _inputs(config, tokens_BT, _CPU)).mean()
    expected.backward()
    for way_name, way in ways.items():
        torch.compiler.reset()
        counters.clear()
        with settings.device:
            model = ImageGPT(config)
        model.load_state_dict(weights)
        prepared = PretrainConfig.from_fields(
            runs="unused", compile=way.compiled, activation_checkpointing=way.recomputing, preset="tiny"
        )
        prepare_blocks(model, prepared)
        torch.backends.cuda.matmul.allow_tf32 = way.tf32
        inputs = _inputs(config, tokens_BT, settings.device)

        def compute(model: ImageGPT = model, inputs: Inputs = inputs, way: _Way = way) -> Tensor:
            model.zero_grad(set_to_none=True)
            with _autocast(settings) if way.autocast else nullcontext():
                loss = losses(model, inputs).mean()
            loss.backward()
            return loss.detach()

        loss = compute()
        worst, of_all = _gradient_errors(model, reference)
        record(
            "Losses and gradients against float64 on the CPU",
            {
                "model": f"{name}, {config.layers} layers of {config.width}, {config.resolution}x{config.resolution}",
                "computed in": way_name,
                "relative error of the loss": abs(loss.item() / expected.item() - 1),
                "of the gradient": of_all,
                "of the worst tensor's": worst,
                "graphs": counters["stats"]["unique_graphs"],
                "graph breaks": sum(counters["graph_break"].values()),
                "attention kernels": _attention_kernels(compute) if settings.on_gpu else "",
            },
        )
    torch.backends.cuda.matmul.allow_tf32 = False


def _gradient_errors(model: ImageGPT, reference: ImageGPT) -> tuple[float, float]:
    """The norm of the difference over that of the reference: of the worst tensor, and of all together."""
    worst, difference, size = 0.0, 0.0, 0.0
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        off, norm = (ours.grad.cpu().double() - theirs.grad).norm().item(), theirs.grad.norm().item()
        worst = max(worst, off / norm)
        difference, size = difference + off**2, size + norm**2
    return worst, (difference / size) ** 0.5


def _autocast(settings: Settings) -> AbstractContextManager[object]:
    return torch.autocast(settings.device_name, torch.bfloat16)


def _attention_kernels(compute: Callable[[], object]) -> str:
    """Which kernels attend, as the profiler names them."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        compute()
        torch.cuda.synchronize()
    words = ("flash", "fmha", "attention", "sdpa", "cudnn")
    names = {event.key for event in profiled.key_averages()}
    return "; ".join(sorted(name[:60] for name in names if any(word in name.lower() for word in words)))


def _tokens(config: ModelConfig, count: int) -> Tensor:
    """Random tokens, int64 [count, T], on the CPU."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config.colours, (count, config.positions), generator=generator)


def _inputs(config: ModelConfig, tokens_BT: Tensor, device: torch.device) -> Inputs:
    """What the kind of model is given with them, on a device."""
    masked_BT = None
    condition = UNCONDITIONAL
    if config.objective == "masked":
        masked_BT = (tokens_BT % 7 == 0).to(device)
    if config.classes is not None:
        condition = Condition(labels_B=(torch.arange(len(tokens_BT)) % config.classes).to(device))
    if config.low_resolution is not None:
        condition = Condition(low_BP=tokens_BT[:, : config.low_positions].to(device))
    return Inputs(tokens_BT=tokens_BT.to(device), condition=condition, masked_BT=masked_BT)


@torch.inference_mode()
def _compare_drawing(settings: Settings, record: Record, config: ModelConfig) -> None:
    """Draw with the replayed step, and judge every pixel by a whole pass in float64 over what was drawn.

    So an error of one pixel is not counted again in those after it.
    """
    drawing, count = Drawing(seed=5), settings.images(4)
    reference = our_model(config, settings.device).double().eval()
    float32 = our_model(config, settings.device).eval()
    for name, model in {"float32": float32, "bfloat16": our_model(config, settings.device).bfloat16().eval()}.items():
        tokens_BT = torch.zeros(count, config.positions, dtype=torch.int64, device=settings.device)
        numbers_BT = uniform(drawing.seed, "draw", torch.arange(count, device=settings.device), config.positions)
        choose = partial(sample._choose, drawing=drawing)
        known_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        fixed_step.fill(model, tokens_BT, known_BT, UNCONDITIONAL, numbers_BT, choose, lambda done: None)
        logits_BTK = torch.cat([reference(tokens_BT[row : row + 1]) for row in range(count)])
        expected_BT = choose(logits_BTK.flatten(0, 1), numbers_BT.flatten()).view_as(tokens_BT)
        record(
            "Drawn pixels against those that float64 gives after the same pixels",
            {
                "drawn in": name,
                "images": count,
                "same pixels": f"{(expected_BT == tokens_BT).double().mean().item():.2%}",
                "in the first and last 16": f"{_same(expected_BT, tokens_BT, slice(0, 16)):.1%}, "
                f"{_same(expected_BT, tokens_BT, slice(-16, None)):.1%}",
            },
        )


def _same(expected_BT: Tensor, tokens_BT: Tensor, places: slice) -> float:
    return (expected_BT == tokens_BT)[:, places].double().mean().item()
