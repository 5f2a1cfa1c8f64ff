"""Prometheus gauges of a run, served by the Ray node of its driver beside Ray's own metrics.

Ray prefixes their names with `ray_`. A node serves them only where Ray's agent is installed, as by the extra `metrics`;
elsewhere setting them has no effect.
"""

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Gauge

from pipeline.background import Ended, in_background

# Ray exports gauges every 10 s, and drops one that was not set again for about 20 s.
_REPEAT_SECONDS = 5.0
STAGE_GAUGES = {
    "stage_done": "Work done in the current step of a stage",
    "stage_total": "Total work in the current step of a stage; 0: unknown",
}


@cache
def _gauge(name: str, description: str, labels: tuple[str, ...]) -> Gauge:
    return Gauge(f"igpt_{name}", description=description, tag_keys=labels)


class Meter:
    """Gauges for the progress of a stage on a subject: a dataset, a training run or a model.

    A context manager: within the block the newest values are set repeatedly, afterwards they disappear.
    """

    def __init__(self, stage: str, subject: str, run_gauges: Mapping[str, str] | None = None) -> None:
        """`run_gauges` describes the values that `record` exports, by name."""
        self._stage, self._subject, self._run_gauges = stage, subject, run_gauges or {}
        self._lock = threading.Lock()
        self._step = ""
        self._progress: dict[str, float] = {}
        self._recorded: dict[str, float] = {}
        self._thread = in_background(self._repeat, name="ray-metrics")

    def __enter__(self) -> "Meter":
        self._thread.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._thread.__exit__(*error)

    def progress(self, step: str, done: int, total: int, detail: str = "") -> None:
        """A Progress; replaces the values of the previous step."""
        with self._lock:
            self._step, self._progress = step, {"stage_done": done, "stage_total": total}

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Export the values that `run_gauges` names, and the step they belong to; ignore others."""
        known = {name: values[name] for name in self._run_gauges if name in values}
        with self._lock:
            self._recorded |= {**known, "step": step} if known else {}

    def _repeat(self, ended: Ended) -> None:
        while True:
            self._set()
            if ended(_REPEAT_SECONDS):
                return

    def _set(self) -> None:
        with self._lock:
            step, progress, recorded = self._step, dict(self._progress), dict(self._recorded)
        stage = {"stage": self._stage, "subject": self._subject, "step": step}
        for name, value in progress.items():
            _gauge(name, STAGE_GAUGES[name], tuple(stage)).set(value, stage)
        run = {"run": self._subject}
        for name, value in recorded.items():
            _gauge(name, self._run_gauges[name], tuple(run)).set(value, run)
