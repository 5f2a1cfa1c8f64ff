"""Sends the metrics of a training run to MLflow from a background thread."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from igpt_model.tracking.runs import BEAT_TAG, PROGRESS_TAG, REASON_LENGTH, RunLogger
from pipeline.errors import IgptError, first_line

_BEAT_SECONDS = 20.0
_FLUSH_SECONDS = 120.0
_RETRY_SECONDS = 1.0
_METRICS_PER_REQUEST = 500  # the server accepts 1000


class CurveLogger:
    """Logs one value per metric and step, the first one.

    After a restart, steps are repeated with the same values; values logged by earlier processes are not logged again.
    While the server does not answer, values are queued and training is not blocked. `warn` is called when the server
    stops accepting metrics and when it accepts them again.
    """

    def __init__(self, logger: RunLogger, warn: Callable[[str], None] = lambda line: None) -> None:
        self.progress = ""
        """How far the training is, in words; sent with the heartbeat."""
        self._logger, self._warn = logger, warn
        self._written: dict[str, set[int]] = {}
        self._beaten = 0.0
        self._changed = threading.Condition()
        self._waiting: deque[Metric] = deque()
        self._sending = False
        self._error = ""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queue values at a step for logging."""
        now = int(time.time() * 1000)
        with self._changed:
            self._waiting.extend(Metric(name, float(value), now, step) for name, value in values.items())
            if self._waiting and not self._sending:
                self._sending = True
                threading.Thread(target=self._send_all, daemon=True, name="mlflow-curves").start()

    def flush(self, *, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until all values are logged. Raises IgptError when the server does not accept them within `seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._waiting, timeout=seconds):
                raise IgptError(
                    f"MLflow at {self._logger.tracking_uri} does not accept {len(self._waiting)} metrics "
                    f"({self._error or 'it does not answer'}); when it does, run the same command again"
                )

    def _send_all(self) -> None:
        """Send queued values in order until the queue is empty."""
        while True:
            with self._changed:
                batch = list(itertools.islice(self._waiting, _METRICS_PER_REQUEST))
                if not batch:
                    self._sending = False
                    return
            try:
                self._send(batch)
            except Exception as error:  # noqa: BLE001 (reported here and by flush)
                self._report_error(
                    first_line(error, REASON_LENGTH) if isinstance(error, MlflowException) else repr(error)
                )
                time.sleep(_RETRY_SECONDS)
                continue
            self._report_error("")
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _report_error(self, error: str) -> None:
        """Warn when sending starts to fail, and when it works again; an empty error means success."""
        server = f"MLflow at {self._logger.tracking_uri}"
        if error and not self._error:
            self._warn(f"{server} does not accept metrics ({error}); they are queued, and training goes on")
        elif self._error and not error:
            self._warn(f"{server} accepts metrics again")
        self._error = error

    def _send(self, batch: list[Metric]) -> None:
        """Send the metrics of a batch that are not logged yet, and the heartbeat. Raises MlflowException."""
        new: dict[tuple[str, int], Metric] = {}
        for metric in batch:
            if metric.key not in self._written:
                self._written[metric.key] = {step for step, _ in self._logger.metric_history(metric.key)}
            if metric.step not in self._written[metric.key]:
                new.setdefault((metric.key, metric.step), metric)
        # Retries keep the timestamp, so the server drops duplicates when the answer to the first attempt was lost.
        if new:
            self._logger.points(list(new.values()))
        for name, step in new:
            self._written[name].add(step)
        self._beat()

    def _beat(self) -> None:
        """Update the tags of heartbeat and progress from time to time: see `runs.close_abandoned`."""
        if time.time() - self._beaten > _BEAT_SECONDS:
            self._beaten = time.time()
            progress = {PROGRESS_TAG: self.progress} if self.progress else {}
            self._logger.tags({BEAT_TAG: f"{self._beaten:.0f}", **progress})
