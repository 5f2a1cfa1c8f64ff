"""Time and peak memory of the stages of a run, this machine's processes of it taken together."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from pipeline.background import Ended, in_background

_INTERVAL_SECONDS = 2.0  # the kernel walks all page tables for a sample: at half a second it took a sixth of a core


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage took."""

    seconds: float
    peak_memory_bytes: int
    """The largest sum of the proportional set sizes of this process, the embedded services and all their children.

    Of their resident set sizes where the system tells no proportional ones (macOS): what they share counts repeatedly.
    """


class StageMeter:
    """Measures stages one after the other."""

    def __init__(self, roots: Sequence[int] = ()) -> None:
        self._roots = list(roots)
        self.costs: dict[str, StageCost] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Measure the block as a stage."""
        peak = self._memory()

        def sample(ended: Ended) -> None:
            nonlocal peak
            while not ended(_INTERVAL_SECONDS):
                peak = max(peak, self._memory())

        began = time.monotonic()
        try:
            with in_background(sample, name=f"memory of {stage}"):
                yield
        finally:
            self.costs[stage] = StageCost(seconds=time.monotonic() - began, peak_memory_bytes=max(peak, self._memory()))

    def _memory(self) -> int:
        total = 0
        for process in self._processes():
            with suppress(psutil.Error):
                total += _size(process)
        return total

    def _processes(self) -> Iterator[psutil.Process]:
        seen: set[int] = set()
        for root in (psutil.Process().pid, *self._roots):
            with suppress(psutil.Error):
                process = psutil.Process(root)
                for found in (process, *process.children(recursive=True)):
                    if found.pid not in seen:
                        seen.add(found.pid)
                        yield found


def _size(process: psutil.Process) -> int:
    try:
        usage = process.memory_full_info()
    except psutil.AccessDenied:  # macOS tells it of other processes to root alone
        return int(process.memory_info().rss)
    return int(getattr(usage, "pss", 0) or usage.rss)
