"""A Prefect server on a database of a test's choice, and process workers: to be killed and started again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows.services.ports import HOST
from tests.rigs.s3_server import launch_here

_START_SECONDS = 90
_TERMINATION_SECONDS = 20


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """What the death of a container does: SIGKILL for a process and all below it."""
    with suppress(psutil.Error):
        for each in family(psutil.Process(process.pid)):
            with suppress(psutil.Error):
                each.kill()
    process.wait(timeout=_TERMINATION_SECONDS)


@dataclass(kw_only=True)
class PrefectServer:
    """A server; its runs are in the database, whatever happens to the process."""

    port: int
    database_url: str = field(repr=False)
    folder: Path
    auth: str | None = field(default=None, repr=False)
    """user:password that clients must give."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        """What clients are told."""
        return f"http://{HOST}:{self.port}/api"

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its log."""
        environment = {
            "PREFECT_HOME": str(self.folder),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "DO_NOT_TRACK": "1",
            **({"PREFECT_SERVER_API_AUTH_STRING": self.auth} if self.auth else {}),
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(self.port)]
        log = self.folder / "server.log"
        self.process = launch_here(command, environment, log)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=2):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Prefect does not start: {log.read_text(errors='replace')[-3000:]}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        """End it as a lost machine does."""
        if self.process is not None:
            kill_family(self.process)
            self.process = None


@dataclass(kw_only=True)
class Worker:
    """A process worker of one pool, one run at a time."""

    pool: str
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    name: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it and the runs it starts print."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start it; it asks the server for work every second or so."""
        command = [
            *(sys.executable, "-m", "prefect", "worker", "start", "--pool", self.pool, "--type", "process"),
            *("--limit", "1", "--name", self.name, "--install-policy", "never", "--no-create-pool-if-not-found"),
        ]
        environment = {
            **self.environment,
            "PREFECT_HOME": str(self.folder / self.name),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
            "PATH": os.environ["PATH"],
        }
        self.process = launch_here(command, environment, self.log)

    def kill(self) -> None:
        """End it and the runs it has started, as a lost machine does."""
        if self.process is not None:
            kill_family(self.process)
            self.process = None

    def terminate(self) -> None:
        """Ask it to end, as a deployment of a new version does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=_TERMINATION_SECONDS)
            self.kill()

    def said(self) -> str:
        """What it and its runs have printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""
