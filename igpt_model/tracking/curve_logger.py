"""The curves of a training on their way to its MLflow run, in a thread of their own."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from igpt_model.tracking.runs import BEAT_TAG, REASON_LENGTH, RunLogger
from pipeline.errors import IgptError, first_line

_BEAT_SECONDS = 20.0
_FLUSH_SECONDS = 120.0
_AGAIN_SECONDS = 1.0
_METRICS_A_REQUEST = 500  # the server takes 1000


class CurveLogger:
    """Writes curves: of each metric one value a step, the first.

    Steps are repeated after a restart, and come to the same values; what an earlier process has written counts too.
    While the server does not answer, values wait, and nobody waits for them: MLflow's client is patient. `warn` hears
    when they begin to wait, and when they no longer do.
    """

    def __init__(self, logger: RunLogger, warn: Callable[[str], None] = lambda line: None) -> None:
        self._logger, self._warn = logger, warn
        self._written: dict[str, set[int]] = {}
        self._beaten = 0.0
        self._changed = threading.Condition()
        self._waiting: deque[Metric] = deque()
        self._sending = False
        self._error = ""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at a step, soon or when the server answers again."""
        now = int(time.time() * 1000)
        with self._changed:
            self._waiting.extend(Metric(name, float(value), now, step) for name, value in values.items())
            if self._waiting and not self._sending:
                self._sending = True
                threading.Thread(target=self._send_all, daemon=True, name="mlflow-curves").start()

    def flush(self, *, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until all is logged. Raises IgptError when the server does not take it for so long."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._waiting, timeout=seconds):
                raise IgptError(
                    f"MLflow at {self._logger.tracking_uri} does not take {len(self._waiting)} metrics "
                    f"({self._error or 'it does not answer'}); when it does, run the same command again"
                )

    def _send_all(self) -> None:
        """Send until nothing waits any more, in order."""
        while True:
            with self._changed:
                batch = list(itertools.islice(self._waiting, _METRICS_A_REQUEST))
                if not batch:
                    self._sending = False
                    return
            try:
                self._send(batch)
            except Exception as error:  # noqa: BLE001 (told, here and by flush)
                self._tell(first_line(error, REASON_LENGTH) if isinstance(error, MlflowException) else repr(error))
                time.sleep(_AGAIN_SECONDS)
                continue
            self._tell("")
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _tell(self, error: str) -> None:
        """Warn when sending begins to fail, and when it works again."""
        place = f"MLflow at {self._logger.tracking_uri}"
        if error and not self._error:
            self._warn(f"{place} does not take metrics ({error}); they wait, and the training goes on")
        elif self._error and not error:
            self._warn(f"{place} takes metrics again")
        self._error = error

    def _send(self, batch: list[Metric]) -> None:
        """Send what of a batch is new, and a sign of life. Raises MlflowException."""
        fresh: dict[tuple[str, int], Metric] = {}
        for metric in batch:
            if metric.key not in self._written:
                self._written[metric.key] = {step for step, _ in self._logger.metric_history(metric.key)}
            if metric.step not in self._written[metric.key]:
                fresh.setdefault((metric.key, metric.step), metric)
        # It keeps its time, by which the server knows it when it comes twice because the first answer was lost.
        if fresh:
            self._logger.points(list(fresh.values()))
        for name, step in fresh:
            self._written[name].add(step)
        self._beat()

    def _beat(self) -> None:
        """Say now and then that somebody is at work on the run: see `tracking.close_abandoned`."""
        if time.time() - self._beaten > _BEAT_SECONDS:
            self._beaten = time.time()
            self._logger.tags({BEAT_TAG: f"{self._beaten:.0f}"})
