"""Time and memory of stages, including their child processes, and when a stage fails."""

import subprocess
import sys
import time

import pytest

from flows.terminal import memory
from flows.terminal.memory import StageMeter

SIZE = 200 << 20
HOLD = f"import sys; held = bytearray({SIZE}); print('held', flush=True); sys.stdin.read()"


def test_memory_of_this_process_and_its_children_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_INTERVAL_SECONDS", 0.2)
    samples = 0

    class Counting(StageMeter):
        def _memory(self) -> int:
            nonlocal samples
            total = super()._memory()
            samples += 1
            return total

    meter = Counting()
    with meter.measure("nothing"):
        pass
    with meter.measure("here"):
        held = bytearray(SIZE)
    del held
    with (
        meter.measure("child"),
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        enough = samples + 2  # the first of the two may have begun before the child's allocation
        while samples < enough:
            time.sleep(0.05)
    base = meter.costs["nothing"].peak_memory_bytes
    for stage in ("here", "child"):
        assert SIZE * 0.9 < meter.costs[stage].peak_memory_bytes - base < SIZE * 1.5


def test_a_root_and_its_children_are_counted_once() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        alone, with_root = StageMeter(), StageMeter([child.pid])
        for meter in (alone, with_root):
            with meter.measure("stage"):
                pass
    difference = with_root.costs["stage"].peak_memory_bytes - alone.costs["stage"].peak_memory_bytes
    assert abs(difference) < SIZE / 4


def test_a_failed_stage_is_measured_too() -> None:
    meter = StageMeter([2**22 + 1])  # a process that does not exist
    with pytest.raises(ZeroDivisionError), meter.measure("failing"):
        time.sleep(0.2)
        _ = 1 / 0
    assert 0.2 <= meter.costs["failing"].seconds < 30
