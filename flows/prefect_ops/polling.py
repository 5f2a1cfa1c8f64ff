"""Keep a Prefect worker polling a work pool, whatever happens to it, and let its flow runs live on meanwhile.

A worker ends when the server is away for some twenty minutes, and it may hang. It is then started again. The drivers of
its runs (launcher.py) are adopted by this process: they count towards the limit, and it passes SIGTERM on to them. So a
container's health is that of this process: its page answers while its loop turns, whether the server is there or not.
"""

import ctypes
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil

from flows.services import settings
from flows.services.ports import HOST, free_port

_TURN_SECONDS = 2.0
_HEALTH_SECONDS = 30.0
_UNHEALTHY_CHECKS = 4
_TURNING_SECONDS = 60.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
# Prefect kills what a worker has started 30 s after the worker is told to end.
_WORKER_END_SECONDS = 45.0
_DRIVER = "flows.prefect_ops.driver"
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(kw_only=True)
class Keeper:
    """Keeps one worker."""

    pool: str
    limit: int
    """How many flow runs of the pool may work at once."""
    say: Callable[[str], None]
    _worker: subprocess.Popen[bytes] | None = None
    _worker_limit: int = 0
    _worker_port: int = 0
    _started: float = 0.0
    """When the worker was started, or may be started again."""
    _pause: float = _SHORTEST_PAUSE
    _next_check: float = 0.0
    _unhealthy: int = 0
    _last_turn: float = field(default_factory=time.monotonic)

    def is_turning(self) -> bool:
        """Whether the loop has turned within the last minute."""
        return time.monotonic() - self._last_turn < _TURNING_SECONDS

    def keep(self, ended: threading.Event) -> None:
        """Keep a worker until `ended` is set, then end it and all drivers, and wait for them."""
        _adopt_descendants()
        while not ended.wait(_TURN_SECONDS):
            self._last_turn = time.monotonic()
            self._turn()
        drivers = [driver.process for driver in _drivers()]
        self.say(f"ending the worker of pool {self.pool} and {len(drivers)} flow runs")
        for process in drivers:
            with suppress(psutil.Error):
                process.terminate()
        self._end_worker()
        while _drivers():  # an ended one is none; whoever ends this process decides how long that may take
            self._last_turn = time.monotonic()
            time.sleep(_TURN_SECONDS)
        self._reap_adopted()

    def _turn(self) -> None:
        worker = self._worker
        if worker is not None and worker.poll() is not None:
            self._worker = None
            lived = time.monotonic() - self._started
            self._pause = _SHORTEST_PAUSE if lived > _LONGEST_PAUSE else min(2 * self._pause, _LONGEST_PAUSE)
            self._started = time.monotonic() + self._pause
            self.say(f"the worker of pool {self.pool} ended with code {worker.returncode} and is started again")
        self._reap_adopted()
        drivers = _drivers()
        own = [driver for driver in drivers if self._worker is not None and self._worker.pid in driver.ancestors]
        free = self.limit - (len(drivers) - len(own))
        now = time.monotonic()
        if self._worker is None:
            if free > 0 and now >= self._started:
                self._start(free)
        elif free > self._worker_limit and not own:
            self._end_worker()  # the runs of an earlier worker have ended: start again, with their places
        elif now >= self._next_check:
            self._next_check = now + _HEALTH_SECONDS
            self._unhealthy = 0 if _is_polling(self._worker_port) else self._unhealthy + 1
            if self._unhealthy >= _UNHEALTHY_CHECKS:
                self.say(f"the worker of pool {self.pool} does not poll")
                self._end_worker()

    def _start(self, limit: int) -> None:
        self._worker_port = free_port()
        self._worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "prefect", "worker", "start", f"--pool={self.pool}", "--type=process"),
                *(f"--limit={limit}", "--install-policy=never", "--no-create-pool-if-not-found", "--with-healthcheck"),
            ],
            env=settings.worker_environment(self._worker_port),
        )
        self._worker_limit, self._started, self._unhealthy = limit, time.monotonic(), 0
        self._next_check = self._started + _HEALTH_SECONDS

    def _reap_adopted(self) -> None:
        """Take note of the end of adopted processes, which otherwise stay in the system's table."""
        for child in psutil.Process().children():
            if self._worker is None or child.pid != self._worker.pid:
                with suppress(OSError):
                    os.waitpid(child.pid, os.WNOHANG)

    def _end_worker(self) -> None:
        if self._worker is None:
            return
        self._worker.terminate()
        try:
            self._worker.wait(_WORKER_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()


@dataclass(frozen=True, kw_only=True)
class _Driver:
    """A live driver below this process."""

    process: psutil.Process
    ancestors: frozenset[int]
    """Ids of the processes between this one and the driver."""


def _adopt_descendants() -> None:
    """Become the parent of descendants whose parent ends, which is otherwise the system's first process."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _drivers() -> list[_Driver]:
    """The live drivers among the descendants."""
    descendants = psutil.Process().children(recursive=True)
    parents, drivers = {}, []
    for process in descendants:
        with suppress(psutil.Error):
            parents[process.pid] = process.ppid()
    for process in descendants:
        with suppress(psutil.Error):  # among others it has ended, and waits for its parent to take note
            if _DRIVER in process.cmdline():
                drivers.append(_Driver(process=process, ancestors=frozenset(_line(process.pid, parents))))
    return drivers


def _line(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) in parents:
        yield pid


def _is_polling(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def served_health(keeper: Keeper, address: str, port: int) -> Iterator[None]:
    """Serve `/health` within the block: 200 while the keeper's loop turns, else 503. Raises OSError for the address."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if keeper.is_turning() else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((address, port), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True, name="health")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
