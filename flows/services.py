"""One embedded service: how it is started, how it is asked whether it answers, and how it is ended."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

import psutil

from pipeline.errors import IgptError

HOST = "127.0.0.1"
_START_SECONDS = 120
_END_SECONDS = 10
# What would point a service at somebody else's, when the caller's shell has it set.
_MISLEADING = ("PREFECT_", "MLFLOW_", "RAY_", "AWS_", "RCLONE_")


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service to be started."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    url: str
    answers: Callable[[], bool]
    log: Path


@dataclass(frozen=True, kw_only=True)
class RecordedProcess:
    """A started process. The start time tells it from another that got the same id later."""

    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        """The process, if it is still that one and alive."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def program(name: str) -> str:
    """The path of an installed program. Raises IgptError when it is missing."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise IgptError(f"the program {name} is not installed; install the project again with its dependencies")
    return found


def is_free(port: int) -> bool:
    """Tell whether nothing listens on a loopback port."""
    with closing(socket(AF_INET, SOCK_STREAM)) as probe:
        probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens."""
    sockets = [socket(AF_INET, SOCK_STREAM) for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def http_answers(url: str) -> bool:
    """Tell whether a GET is answered with success."""
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return 200 <= answer.status < 300
    except (urllib.error.URLError, OSError):
        return False


def start(service: Service) -> RecordedProcess:
    """Start a service in a session of its own, so that Ctrl-C in the caller's terminal does not reach it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_MISLEADING)}
    service.log.parent.mkdir(parents=True, exist_ok=True)
    with service.log.open("ab") as log:
        child = subprocess.Popen(
            list(service.command),
            env={**inherited, **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return RecordedProcess(pid=child.pid, started=psutil.Process(child.pid).create_time())


def wait_until_answering(service: Service, process: RecordedProcess) -> None:
    """Wait for a started service. Raises IgptError with the log's last line when it ends or stays silent."""
    deadline = time.monotonic() + _START_SECONDS
    while not service.answers():
        if process.find() is None:
            raise IgptError(f"{service.name} ended while starting ({_last_line(service.log)}); see {service.log}")
        if time.monotonic() > deadline:
            raise IgptError(
                f"{service.name} does not answer after {_START_SECONDS} s ({_last_line(service.log)}); "
                f"see {service.log}"
            )
        time.sleep(0.2)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "its log is empty"


def end(process: RecordedProcess, *, also: Callable[[psutil.Process], bool] = lambda process: False) -> None:
    """End a process and all below it, and those for which `also` holds: first asked, then killed."""
    root = process.find()
    chosen = {}
    if root is not None:
        with suppress(psutil.Error):
            chosen = {p.pid: p for p in (root, *root.children(recursive=True))}
    for other in psutil.process_iter():
        with suppress(psutil.Error):
            if other.pid != os.getpid() and also(other):
                chosen[other.pid] = other
    _signal(chosen.values(), signal.SIGTERM)
    _, alive = psutil.wait_procs(list(chosen.values()), timeout=_END_SECONDS)
    _signal(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_END_SECONDS)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)
