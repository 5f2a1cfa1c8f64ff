"""The processes of a local service: starting them, finding all of them again, asking whether they work, ending them."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# What would point a service at somebody else's, when the caller's shell has it set.
_MISLEADING = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "RAY_", "AWS_", "RCLONE_")
# Every process of a service inherits it, so that those whose parent is gone are still found, and nothing else is.
_MARK = "IGPT_SERVICE"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a terminal


@dataclass(frozen=True, kw_only=True)
class Service:
    """How one service is started, and how it is asked whether it works."""

    name: str
    port: int
    url: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    folder: Path
    """Its working directory."""
    log: Path
    ask: Callable[[], str | None] = field(repr=False)
    """Makes a real request; returns why the service cannot be used, or None when it can."""
    told: frozenset[str] = frozenset()
    """The services whose addresses it was told when it was started."""


def mark(home: Path, name: str) -> dict[str, str]:
    """The variable by which the processes of a service of a home are known."""
    return {_MARK: f"{name} of {home}"}


def inherited_environment() -> dict[str, str]:
    """This process's variables without those that would point a service at somebody else's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_MISLEADING)}


def start(service: Service) -> psutil.Process:
    """Start a service in a session of its own, so that Ctrl-C in the caller's terminal does not reach it.

    What the service prints goes to its log; the log of its previous process is kept beside it.
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
    child.returncode = 0  # it shall outlive this program, of which Popen would complain
    return psutil.Process(child.pid)


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs. One that has ended does not, even if nobody has asked for its exit status."""
    with suppress(psutil.TimeoutExpired):
        process.wait(timeout=0)  # asks for it, if the process is our child
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def complaint(service: Service, process: psutil.Process) -> str | None:
    """Why a service that runs as `process` cannot be used, or None when it can."""
    if (reason := service.ask()) is not None:
        return reason
    for each in family(process):
        with suppress(psutil.Error):
            listening = [other.laddr.port for other in each.net_connections() if other.status == psutil.CONN_LISTEN]
            if service.port in listening:
                return None
    return f"another program answers on its port {service.port}"


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it; empty when it has ended."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def strays(home: Path, names: Collection[str], ray_folder: Path) -> list[psutil.Process]:
    """Every process that was started by one of these services of this home, also when its parent is gone."""
    marks = {mark(home, name)[_MARK] for name in names}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found_mark = process.environ().get(_MARK)
            if found_mark is None and "ray" in names and _has_title_of_ray(process):
                # Ray's agents write their title over their environment; their logs are open below the folder.
                mine = any(Path(file.path).is_relative_to(ray_folder) for file in process.open_files())
            else:
                mine = found_mark in marks
            if mine and process.pid != os.getpid():
                found.append(process)
    return found


def _has_title_of_ray(process: psutil.Process) -> bool:
    # On macOS the name stays the program's, and the title is in the command line alone.
    return any(text.startswith("ray::") for text in (process.name(), *process.cmdline()[:1]))


def end(processes: Iterable[psutil.Process], *, patience_seconds: float) -> None:
    """Ask processes to end; kill those that do not."""
    alive = list(processes)
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.Error):
                send(process)
        deadline = time.monotonic() + patience_seconds
        while (alive := [process for process in alive if is_alive(process)]) and time.monotonic() < deadline:
            time.sleep(0.05)


def last_line(log: Path) -> str:
    """The line of a log that tells most likely why its service ended."""
    text = _ESCAPES.sub("", log.read_text(errors="replace")) if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"(Error|Exception):|ERROR|CRITICAL|FATAL|[Ff]atal|[Ff]ailed", line)]
    return shortened((telling or lines or ["it is empty"])[-1])


def shortened(text: str) -> str:
    """A text in one line that is not too long."""
    return " ".join(text.split())[:300]
