"""Messages from training workers to the driver. Separate from ray.py, so that the actor does not import torch."""

import logging
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.errors import IgptError

_DELIVERY_SECONDS = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class News:
    """Messages since the last read; `step`, `workers` and `failure` are the current values."""

    step: int | None
    """Steps done; None before the first."""
    workers: int | None
    """Number of workers at the last step."""
    metrics: list[tuple[int, dict[str, float]]]
    """Metrics by step, in the order received."""
    warnings: list[str]
    saved: list[int]
    """Steps whose checkpoints are complete."""
    groups: int
    """How often a group of workers has begun; each but the first took the place of one that had ended."""
    hosts: dict[str, dict[str, float]]
    """Latest system metrics of each machine, by address."""
    failure: IgptError | None


class Mailbox:
    """An actor that collects messages of the workers: rank 0's progress, system metrics by machine, and errors."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._workers: int | None = None
        self._metrics: list[tuple[int, dict[str, float]]] = []
        self._warnings: list[str] = []
        self._saved: list[int] = []
        self._groups = 0
        self._hosts: dict[str, dict[str, float]] = {}
        self._failure: IgptError | None = None

    def begin(self) -> None:
        """Record that a group of workers begins."""
        self._groups += 1

    def beat(self, step: int, workers: int) -> None:
        """Record that a step is done, and by how many workers."""
        self._step, self._workers = step, workers

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record metrics at a step."""
        self._metrics.append((step, values))

    def warn(self, line: str) -> None:
        """Record a warning for the user."""
        self._warnings.append(line)

    def saved(self, step: int) -> None:
        """Record that the checkpoint of a step is complete."""
        self._saved.append(step)

    def host(self, address: str, values: dict[str, float]) -> None:
        """Record system metrics of a machine."""
        self._hosts[address] = values

    def fail(self, error: IgptError) -> None:
        """Record the error that ended the training; only the first is kept."""
        self._failure = self._failure or error

    def read(self) -> News:
        """Return and clear the new messages."""
        news = News(
            step=self._step,
            workers=self._workers,
            metrics=self._metrics,
            warnings=self._warnings,
            saved=self._saved,
            groups=self._groups,
            hosts=self._hosts,
            failure=self._failure,
        )
        self._metrics, self._warnings, self._saved, self._hosts = [], [], [], {}
        return news


class MailboxListener:
    """Sends a worker's events to the driver, which has access to MLflow."""

    def __init__(self, mailbox: Any) -> None:
        """`mailbox` is the handle of a Mailbox actor."""
        self._mailbox = mailbox

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Send metrics at a step."""
        self._mailbox.metrics.remote(step, values)

    def warn(self, line: str) -> None:
        """Send a warning, and wait until it is delivered.

        The process may end right after this, and messages that Ray has not sent yet would be lost.
        """
        _log.warning(line)
        ray.wait([self._mailbox.warn.remote(line)], timeout=_DELIVERY_SECONDS)

    def saved(self, step: int) -> None:
        """Send that the checkpoint of a step is complete."""
        self._mailbox.saved.remote(step)

    def deliver(self) -> None:
        """Wait until all messages are delivered: an actor runs the calls of a process in order."""
        ray.wait([self._mailbox.__ray_ready__.remote()], timeout=_DELIVERY_SECONDS)
