"""Time and peak memory of a run's stages, summed over its processes on this machine."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from flows.services.process import process_tree
from pipeline.background import Ended, in_background

_INTERVAL_SECONDS = 2.0  # a sample makes the kernel walk all page tables; every half second took a sixth of a core


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Time and peak memory of one stage."""

    seconds: float
    peak_memory_bytes: int
    """Maximum of the summed proportional set sizes of this process, the local services and all their children.

    Resident set sizes where the system has no proportional ones (macOS); shared pages then count once per process.
    """


class StageMeter:
    """Measures stages, one at a time."""

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
        members: set[psutil.Process] = set()
        for root in (psutil.Process().pid, *self._roots):
            with suppress(psutil.NoSuchProcess):
                members.update(process_tree(psutil.Process(root)))
        total = 0
        for member in members:
            with suppress(psutil.Error):
                total += _size(member)
        return total


def _size(process: psutil.Process) -> int:
    try:
        usage = process.memory_full_info()
    except psutil.AccessDenied:  # on macOS only root may read it of other processes
        return int(process.memory_info().rss)
    return int(getattr(usage, "pss", 0) or usage.rss)
