"""Ends a worker that makes no progress, after reporting the stacks of its threads; its launcher restarts it.

A collective whose peer is gone or stuck would wait forever; every worker detects this by itself.
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

_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: temporary failure
_REPORT_SECONDS = 40.0


class Watchdog:
    """Within its block, ends the process after `seconds` without a beat (0: never); `report` gets the stacks first."""

    def __init__(self, seconds: float, report: Callable[[str], None]) -> None:
        self._seconds, self._report = seconds, report
        self._last = time.monotonic()
        self._thread = in_background(self._watch, name="watchdog") if seconds else nullcontext()

    def __enter__(self) -> Self:
        self.beat()
        self._thread.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._thread.__exit__(*error)

    def beat(self) -> None:
        """Signal progress."""
        self._last = time.monotonic()

    def _watch(self, ended: Ended) -> None:
        period = min(1.0, self._seconds / 4)
        last_check = time.monotonic()
        while not ended(period):
            now = time.monotonic()
            if now - last_check > period + self._seconds / 4:
                self._last = now  # the whole machine was suspended: restart the timeout
            last_check = now
            if now - self._last > self._seconds:
                # The report may hang as well; the process ends in any case.
                reporter = threading.Thread(target=self._report_stacks, daemon=True)
                reporter.start()
                reporter.join(timeout=_REPORT_SECONDS)
                if ended(0):  # the last step came back while its stacks were reported
                    return
                os._exit(_EXIT_CODE)

    def _report_stacks(self) -> None:
        with suppress(Exception):
            self._report(stacks())


def stacks() -> str:
    """The stack of each thread of this process, innermost call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
