"""Where training workers leave news for the driver. Apart from ray_train.py, so that its actor need not load torch."""

import logging
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.errors import IgptError

_DELIVERY_SECONDS = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class News:
    """What is new since the last reading, but for `step`, `workers` and `failure`, which stay."""

    step: int | None
    """Steps done; None before the first."""
    workers: int | None
    """Number of workers that did the last of them."""
    metrics: list[tuple[int, dict[str, float]]]
    """Values by step, in the order in which they came."""
    warnings: list[str]
    saved: list[int]
    """Steps whose checkpoints were written."""
    hosts: dict[str, dict[str, float]]
    """How busy the machines were when they last told, by their addresses."""
    failure: IgptError | None


class Mailbox:
    """An actor in which rank 0 leaves its news, a worker of each machine how busy that is, and any a user's error."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._workers: int | None = None
        self._metrics: list[tuple[int, dict[str, float]]] = []
        self._warnings: list[str] = []
        self._saved: list[int] = []
        self._hosts: dict[str, dict[str, float]] = {}
        self._failure: IgptError | None = None

    def beat(self, step: int, workers: int) -> None:
        """A step is done by so many workers."""
        self._step, self._workers = step, workers

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Values of some metrics at a step."""
        self._metrics.append((step, values))

    def warn(self, line: str) -> None:
        """A line for the user."""
        self._warnings.append(line)

    def saved(self, step: int) -> None:
        """The checkpoint of a step is written."""
        self._saved.append(step)

    def host(self, address: str, values: dict[str, float]) -> None:
        """How busy a machine is."""
        self._hosts[address] = values

    def fail(self, error: IgptError) -> None:
        """What ended the training; the first is kept."""
        self._failure = self._failure or error

    def read(self) -> News:
        """Take what is new."""
        news = News(
            step=self._step,
            workers=self._workers,
            metrics=self._metrics,
            warnings=self._warnings,
            saved=self._saved,
            hosts=self._hosts,
            failure=self._failure,
        )
        self._metrics, self._warnings, self._saved, self._hosts = [], [], [], {}
        return news


class MailboxListener:
    """Sends a worker's news to the driver, which alone knows MLflow."""

    def __init__(self, mailbox: Any) -> None:
        """Send to a Mailbox, given by its handle."""
        self._mailbox = mailbox

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Send values of some metrics at a step."""
        self._mailbox.metrics.remote(step, values)

    def warn(self, line: str) -> None:
        """Send a line for the user, and wait until it has come.

        It may be this process's last word, and what Ray has not sent yet ends with the process.
        """
        _log.warning(line)
        ray.wait([self._mailbox.warn.remote(line)], timeout=_DELIVERY_SECONDS)

    def saved(self, step: int) -> None:
        """Send that the checkpoint of a step is written."""
        self._mailbox.saved.remote(step)

    def deliver(self) -> None:
        """Wait until all that was sent has come: an actor takes the calls of one process in their order."""
        ray.wait([self._mailbox.__ray_ready__.remote()], timeout=_DELIVERY_SECONDS)
