"""A Prefect server on a given database, and workers (`igpt worker`), which tests kill and start again."""

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

from flows.services.password_files import for_prefect
from flows.services.ports import HOST, free_port
from tests.rigs.s3_server import launch_here

_START_SECONDS = 90
_TERMINATION_SECONDS = 20


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants; empty if it has ended."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all its descendants, as the death of a container does."""
    with suppress(psutil.Error):
        for member in process_tree(psutil.Process(process.pid)):
            with suppress(psutil.Error):
                member.kill()
    process.wait(timeout=_TERMINATION_SECONDS)


@dataclass(kw_only=True)
class PrefectServer:
    """A server; its runs are in the database and survive the process."""

    port: int
    database_url: str = field(repr=False)
    folder: Path
    auth: str | None = field(default=None, repr=False)
    """The USER:PASSWORD that clients must send."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """More variables of Prefect."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        """The URL for clients."""
        return f"http://{HOST}:{self.port}/api"

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its log."""
        environment = {
            "PREFECT_HOME": str(self.folder),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "DO_NOT_TRACK": "1",
            **self.settings,
        }
        if self.auth:
            profiles = self.folder / "prefect.toml"
            profiles.write_text(for_prefect(self.auth, {"PREFECT_SERVER_API_AUTH_STRING": self.auth}))
            environment["PREFECT_PROFILES_PATH"] = str(profiles)
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
        """Kill it, as the loss of its machine does."""
        if self.process is not None:
            kill_family(self.process)
            self.process = None


@dataclass(kw_only=True)
class Worker:
    """An `igpt worker` of one pool that runs one flow run at a time."""

    pool: str
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    name: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The output of the worker and its runs."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start it; it polls the server about every second."""
        command = [sys.executable, "-m", "flows.cli", "worker", self.pool, f"--port={free_port()}"]
        environment = {
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
            **self.environment,
            "PREFECT_HOME": str(self.folder / self.name),
            "PATH": os.environ["PATH"],
        }
        self.process = launch_here(command, environment, self.log)

    def polling(self) -> psutil.Process | None:
        """Prefect's own worker, which polls and starts the drivers of flow runs; None while there is none."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                if "worker" in child.cmdline()[3:4]:
                    return child
        return None

    def drivers(self) -> list[psutil.Process]:
        """The processes of its flow runs."""
        assert self.process is not None
        drivers = []
        for process in process_tree(psutil.Process(self.process.pid)):
            with suppress(psutil.Error):
                if "flows.prefect_ops.driver" in process.cmdline():
                    drivers.append(process)
        return drivers

    def kill(self) -> None:
        """Kill it and its runs, as the loss of its machine does."""
        if self.process is not None:
            kill_family(self.process)
            self.process = None

    def terminate(self) -> None:
        """Send it SIGTERM, as the deployment of a new version does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=_TERMINATION_SECONDS)
            self.kill()

    def said(self) -> str:
        """The output of the worker and its runs so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""
