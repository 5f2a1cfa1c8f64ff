"""What Ray's workers log, in the log of their flow run, where it outlives their node."""

import logging
import threading
import time
from collections.abc import Callable

from pipeline.cluster.logs import WorkerLine
from pipeline.printable import printable

_Logger = logging.Logger | logging.LoggerAdapter
_A_MINUTE = 60.0
_LINES = 600
# What libraries log below warnings is for their developers.
_OURS = ("pipeline", "igpt_model", "flows", "py.warnings", "ray.train")
# Ray Train asks for this again and again where there is no dashboard.
_NOISE = "Failed to query Ray Train Controller actor state"
_CHARACTERS = 10_000  # of one line, with its traceback; Prefect keeps them in its database


class WorkerLines:
    """Passes lines on to a logger, 600 a minute at most; how many were left out is a line too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.logger: _Logger = logging.getLogger(__name__)
        """The log of the flow run that works."""
        self._clock = clock
        self._lock = threading.Lock()
        self._minute, self._passed, self._left_out = clock(), 0, 0

    def __call__(self, line: WorkerLine) -> None:
        if not threading.main_thread().is_alive():
            return  # the process ends: Prefect's handler would start a thread again, which then hangs
        if line.text.startswith(_NOISE) or (
            line.logger and line.level < logging.WARNING and not line.logger.startswith(_OURS)
        ):
            return
        with self._lock:
            if self._clock() - self._minute >= _A_MINUTE:
                left_out = self._left_out
                self._minute, self._passed, self._left_out = self._clock(), 0, 0
            else:
                left_out = 0
            self._passed += 1
            passes = self._passed <= _LINES
            self._left_out += not passes
        if left_out:
            self.logger.warning("%d lines of Ray's workers were left out; their nodes have them", left_out)
        if passes:
            text = "\n".join(printable(part) for part in line.text[:_CHARACTERS].splitlines())
            self.logger.log(line.level, "%s: %s", line.node, text)
