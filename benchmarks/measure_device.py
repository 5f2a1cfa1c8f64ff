"""Shared by the model's benchmarks: interleaved timing on a device, ratios of seconds, and tables of results."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import measure
from igpt_model.model.linear import Linear

_HOW = (
    "Speeds are those of the fastest round, ratios the median over the rounds (tenth to ninetieth percentile; "
    "of the fastest rounds)."
)


def machine(device: torch.device) -> dict[str, object]:
    """Describe the machine, its load and the device; to be called before the measurement."""
    described = {**measure.machine("torch", "transformers"), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
        described |= {"cuda": torch.version.cuda}
    return described


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one unmeasured run of each.

    In a round they run one after the other, so that a longer disturbance of the machine affects all of them; each round
    begins with another contender.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            synchronize(device)
            began = time.perf_counter()
            contenders[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - began)
    return seconds


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times longer one contender took than another: the median over the rounds, and their spread."""

    median: float
    tenth: float
    """A tenth of the rounds had a smaller ratio."""
    ninetieth: float
    of_fastest: float
    """The ratio of the fastest rounds, which other load has affected least."""

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.tenth:.2f} to {self.ninetieth:.2f}; fastest {self.of_fastest:.2f})"


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """The ratio of two contenders' seconds, round by round."""
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    last = len(ratios) - 1
    return Ratio(
        median=statistics.median(ratios),
        tenth=ratios[round(0.1 * last)],
        ninetieth=ratios[round(0.9 * last)],
        of_fastest=min(slower) / min(faster),
    )


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product, the reference for a model's rate.

    The faster one of PyTorch's product and the kernel of our linear layers on this device.
    """
    if device.type == "cuda":
        side, times = 8192, 20
    else:  # without instructions for a format, a CPU takes seconds for small products
        side, times = (2048 if dtype == torch.float32 else 512), 5
    a, b = (torch.randn(1, side, side, device=device).to(dtype) for _ in range(2))
    layer = Linear(side, side).to(device, dtype)
    nn.init.normal_(layer.weight)
    with torch.inference_mode():
        measured = interleave({"product": lambda: a @ b, "layer": lambda: layer(a)}, times, device)
    return 2 * side**3 / min(map(min, measured.values()))


def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second that the device reads when it sums an array larger than its caches."""
    numbers = torch.ones(1 << (30 if device.type == "cuda" else 26), device=device)
    best = min(interleave({"sum": numbers.sum}, 10, device)["sum"])
    return numbers.numel() * numbers.itemsize / best


def save(
    path: Path, title: str, described: Mapping[str, object], rows: Sequence[Mapping[str, object]], notes: str
) -> None:
    """Write all results to {path}.json and a table with the machine to {path}.md; print the table."""
    path.parent.mkdir(exist_ok=True)
    content = {"machine": dict(described), "notes": notes, "rows": [_plain(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    shown = [name for name in rows[0] if not name.startswith("_")]
    lines = [f"# {title}", "", ", ".join(f"{key} {value}" for key, value in _flat(described).items()), ""]
    lines += [f"{notes} {_HOW}", ""]
    lines += ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(_text(row.get(key, "")) for key in shown) + " |" for row in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _flat(described: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in described.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    return {key.lstrip("_"): asdict(value) if isinstance(value, Ratio) else value for key, value in row.items()}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
