"""The parts of the GPU benchmarks, most valuable first: each in a process of its own, with a limit.

What one of them does to the device, a fault or all of its memory taken, is over when its process is. The process of the
next part is started early, so that its imports are done when its turn comes.
"""

import importlib
import multiprocessing
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from benchmarks.gpu.settings import Record, Settings

LIMITS = {"correctness": 90.0, "speed": 200.0, "drawing": 120.0, "pretraining": 540.0}
"""Seconds after which a part is ended."""

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a part ended."""

    part: str
    seconds: float
    error: str | None
    """What went wrong; none: nothing did."""


def run(limits: Mapping[str, float], settings: Settings, record: Record, ended: list[Ending]) -> None:
    """Run parts one after the other, each for so many seconds at most; their rows go to `record` as they come."""
    names = list(limits)
    waiting = [_Started(name, settings) for name in names[:1]]
    for number, name in enumerate(names):
        started = waiting.pop()
        waiting = [_Started(following, settings) for following in names[number + 1 : number + 2]]
        ended.append(started.run(limits[name], record))


class _Started:
    """The process of a part, which waits for its turn."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(name, settings, theirs), name=name)
        self._process.start()
        theirs.close()

    def run(self, limit: float, record: Record) -> Ending:
        began = time.monotonic()
        error = f"was ended after its limit of {limit:g} s"
        try:
            self._ours.send("go")
            while self._ours.poll(max(0.0, began + limit - time.monotonic())):
                kind, *content = self._ours.recv()
                if kind == "ended":
                    (error,) = content
                    break
                record(*content)
        except (EOFError, OSError):
            self._process.join(5)
            error = f"its process died with exit code {self._process.exitcode}"
        self._process.join(5 if error is None else 0)
        self._process.kill()
        self._process.join()
        return Ending(part=self._name, seconds=time.monotonic() - began, error=error)


def _work(name: str, settings: Settings, theirs: Connection) -> None:
    """Import a part, make the device ready, and run it when told to."""
    error = None
    try:
        module = importlib.import_module(f"benchmarks.gpu.{name}")
        torch.zeros(1, device=settings.device)
        torch.set_num_threads(8 if settings.on_gpu else 1)
        theirs.recv()
        module.run(settings, lambda table, row: theirs.send(("row", table, dict(row))))
    except EOFError:
        return  # the main process is gone
    except Exception as raised:  # noqa: BLE001 (reported; the next part runs)
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"[:500]
    theirs.send(("ended", error))
