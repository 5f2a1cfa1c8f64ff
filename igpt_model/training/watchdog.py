"""Ends a worker that makes no step: what its threads are doing is told first, and who started it starts it anew.

A collective whose partner is gone or stuck would wait for ever; each worker of the group finds so by itself.
"""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Self

from pipeline.background import Ended, in_background

_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: to be tried again
_TELLING_SECONDS = 40.0


class Watchdog:
    """In its context, `seconds` without a beat end the process, after `tell` has got its stacks; 0: never."""

    def __init__(self, seconds: float, tell: Callable[[str], None]) -> None:
        self._seconds, self._tell = seconds, tell
        self._last = time.monotonic()
        self._thread = in_background(self._watch, name="watchdog") if seconds else nullcontext()

    def __enter__(self) -> Self:
        self.beat()
        self._thread.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._thread.__exit__(*error)

    def beat(self) -> None:
        """Something was done."""
        self._last = time.monotonic()

    def _watch(self, ended: Ended) -> None:
        period = min(1.0, self._seconds / 4)
        looked = time.monotonic()
        while not ended(period):
            now = time.monotonic()
            if now - looked > period + self._seconds / 4:
                self._last = now  # the machine stood still, and whom this watches with it: its time begins anew
            looked = now
            if now - self._last > self._seconds:
                # Whatever becomes of the telling, which may hang as well, the process ends.
                teller = threading.Thread(target=self._tell_stacks, daemon=True)
                teller.start()
                teller.join(timeout=_TELLING_SECONDS)
                os._exit(_EXIT_CODE)

    def _tell_stacks(self) -> None:
        with suppress(Exception):
            self._tell(stacks())


def stacks() -> str:
    """What each thread of this process is doing, innermost call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
