"""The processes of a local service: start, find, check and end them."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.printable import printable

# Variables of the caller's shell that would configure a service, or point it at other services.
_EXCLUDED = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "RAY_", "AWS_", "RCLONE_")
# An environment variable that all processes of a service inherit; it identifies them even after their parent has ended.
_OWNER = "IGPT_SERVICE"
_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, kw_only=True)
class Service:
    """How to start and check one service."""

    name: str
    port: int
    url: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    folder: Path
    """Its working directory."""
    log: Path
    check: Callable[[], str | None] = field(repr=False)
    """Makes a request to the service; returns why it cannot be used, or None if it can."""
    depends_on: frozenset[str] = frozenset()
    """The services whose addresses it gets at its start."""


def owner_variable(home: Path, name: str) -> dict[str, str]:
    """The environment variable that identifies the processes of a service."""
    return {_OWNER: f"{name} of {home}"}


def inherited_environment() -> dict[str, str]:
    """This process's environment without the variables that would configure a service."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_EXCLUDED)}


def start(service: Service) -> psutil.Process:
    """Start a service in its own session, so that Ctrl-C in the caller's terminal does not reach it.

    Its output goes to its log; the log of its previous process is kept beside it.
    """
    if service.log.exists():
        service.log.replace(service.log.with_suffix(".previous.log"))
    with service.log.open("wb") as log:
        child = subprocess.Popen(
            service.command,
            cwd=service.folder,
            env={**inherited_environment(), **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child.returncode = 0  # it outlives this program; Popen would warn about that
    return psutil.Process(child.pid)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. A zombie, which has ended without being waited for, does not."""
    with suppress(psutil.TimeoutExpired):
        process.wait(timeout=0)  # reaps it, if it is our child
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find_problem(service: Service, process: psutil.Process) -> str | None:
    """Why a service that runs as `process` cannot be used, or None if it can."""
    if (problem := service.check()) is not None:
        return problem
    for member in process_tree(process):
        with suppress(psutil.Error):
            connections = member.net_connections()
            if service.port in [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN]:
                return None
    return f"another program answers on its port {service.port}"


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants; empty if it has ended."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def service_processes(home: Path, names: Collection[str], ray_folder: Path) -> list[psutil.Process]:
    """All processes that these services of a home have started, including those whose parent has ended."""
    owners = {owner_variable(home, name)[_OWNER] for name in names}
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            owner = process.environ().get(_OWNER)
            if owner is None and "ray" in names and _has_ray_title(process):
                # Ray's agents overwrite their environment with their title; their log files are below the folder.
                is_ours = any(Path(file.path).is_relative_to(ray_folder) for file in process.open_files())
            else:
                is_ours = owner in owners
            if is_ours and process.pid != os.getpid():
                processes.append(process)
    return processes


def _has_ray_title(process: psutil.Process) -> bool:
    # On macOS the title does not replace the process name; it is in the command line only.
    return any(text.startswith("ray::") for text in [process.name(), *process.cmdline()[:1]])


def end(processes: Iterable[psutil.Process], *, timeout_seconds: float) -> None:
    """Terminate processes, and kill those that still run after the timeout."""
    alive = list(processes)
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.Error):
                send(process)
        deadline = time.monotonic() + timeout_seconds
        while (alive := [process for process in alive if is_alive(process)]) and time.monotonic() < deadline:
            time.sleep(0.05)


def error_line(log: Path) -> str:
    """The line of a log that most likely says why its service ended."""
    text = _COLOUR_CODES.sub("", log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"(Error|Exception):|ERROR|CRITICAL|FATAL|[Ff]atal|[Ff]ailed", line)]
    return shortened((errors or lines or ["it is empty"])[-1])


def shortened(text: str) -> str:
    """A text as one printable line of at most 300 characters."""
    return printable(" ".join(text.split()))[:300]
