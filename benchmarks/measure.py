"""Shared by all benchmarks: rounds of interleaved contestants, medians with their spread, and the result file."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Series:
    """The results of one contestant over the rounds; larger is better."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    def summary(self) -> dict[str, float]:
        """Median, minimum and maximum."""
        return {"median": round(self.median, 3), "min": round(min(self.values), 3), "max": round(max(self.values), 3)}


def interleave(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Series]:
    """Run every contestant once per round, in turn, so that other load of the machine affects all of them alike."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            values[name].append(run())
            print(f"round {number + 1} of {rounds}: {name} {values[name][-1]:,.1f}", flush=True)
    return {name: Series(values=tuple(results)) for name, results in values.items()}


def ratio(ours: Series, peer: Series) -> dict[str, float]:
    """Our result divided by the peer's of the same round: median, minimum and maximum."""
    return Series(values=tuple(a / b for a, b in zip(ours.values, peer.values, strict=True))).summary()


def machine(*packages: str) -> dict[str, Any]:
    """Describe the machine and its load; to be called before the measurement."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str | None:
    """None: it is not installed, as Hugging Face's models need not be on a machine that measures ours."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    widest = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return ", ".join(part for part in (names[0] if names else platform.machine(), widest) if part)


def save(name: str, results: Mapping[str, Any]) -> None:
    """Write results/{name}.json and print it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"measured": f"{datetime.now(UTC):%Y-%m-%d}", **results}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
