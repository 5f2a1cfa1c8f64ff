"""What a flow run does, how far it is and what it waits for: an artifact on its page, renewed while it works."""

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from flows.prefect_ops.artifacts import plain
from pipeline.progress import in_words

KEY = "progress"
_EVERY_SECONDS = 5.0
_END_SECONDS = 5.0  # a run's end does not wait longer for a server that does not answer
# Steps whose work has not begun, by name: what they wait for.
_WAITING = {"start": "waits for Ray to start", "pause": "waits"}


class ProgressPage:
    """A Progress, and a context manager inside a flow; within the block a thread keeps the artifact current.

    Nothing waits for the server, and nothing fails when it does not answer: the next time the newest text is sent.
    """

    def __init__(self, every: float = _EVERY_SECONDS) -> None:
        self._every = every
        self._run = UUID(flow_run.id) if flow_run.id else None
        self._artifact: UUID | None = None
        self._changed = threading.Lock()
        self._ended = threading.Event()
        self._step, self._first, self._began = "", 0, time.monotonic()
        self._percent, self._text, self._sent = 0.0, "", ""
        self._thread = threading.Thread(target=self._repeat, daemon=True, name="progress-page")

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        with self._changed:
            if step != self._step:
                self._step, self._first, self._began = step, done, time.monotonic()
            if step in _WAITING:
                text = " ".join(f"{_WAITING[step]} {detail}".split())
            else:
                text = in_words(step, done, total, detail)
                if left := self._seconds_left(done, total):
                    text += f"; about {_duration(left)} left"
            self._percent, self._text = 100 * done / total if total else 0.0, text

    def _seconds_left(self, done: int, total: int) -> float:
        """From the speed of this process; 0 where it has made no progress yet."""
        made = done - self._first
        return (time.monotonic() - self._began) * (total - done) / made if made > 0 and total > done else 0.0

    def __enter__(self) -> Self:
        if self._run is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            if kind is None:
                self._percent, self._text = 100.0, "finished"
            elif self._text:
                self._text = f"ended at: {self._text}"
        self._ended.set()
        if self._run is not None:
            self._thread.join(timeout=_END_SECONDS)

    def _repeat(self) -> None:
        while True:
            ended = self._ended.wait(self._every)
            with suppress(PrefectException, httpx.HTTPError, OSError):
                self._send()
            if ended:
                return

    def _send(self) -> None:
        with self._changed:
            percent, text = self._percent, self._text
        if not text or text == self._sent:
            return
        shown = plain(f"{text} ({datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC)")
        with get_client(sync_client=True) as client:
            if self._artifact is None:
                new = ArtifactCreate(key=KEY, type="progress", description=shown, data=percent, flow_run_id=self._run)
                self._artifact = client.create_artifact(new).id
            else:
                client.update_artifact(self._artifact, ArtifactUpdate(description=shown, data=percent))
        self._sent = text


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
