"""An MLflow server for tests: SQLite and artifacts in a folder, or a given database and an object store."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.rigs.databases import with_databases

_START_SECONDS = 120


class MlflowServer:
    """The server; it can be stopped and started again at the same address."""

    def __init__(
        self,
        folder: Path,
        address: str,
        port: int,
        *,
        database: str = "sqlite:///mlflow.db",
        store: Mapping[str, str] | None = None,
    ) -> None:
        """`store` are the variables of an object store to whose bucket `mlflow` clients upload artifacts."""
        self.url = f"http://{address}:{port}"
        self._database, self._store = database, store or {}
        self._folder, self._address, self._port = folder, address, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its log."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "mlflow.log"
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", self._address, "--port", str(self._port),
            "--workers", "1", "--backend-store-uri", self._database,
            *(("--default-artifact-root", "s3://mlflow", "--no-serve-artifacts") if self._store
              else ("--serve-artifacts", "--artifacts-destination", "artifacts")),
            "--allowed-hosts", f"{self._address}:{self._port}",
        ]  # fmt: skip
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self._folder),
                    **self._store,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it would start eight processes, unused here
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server does not start: {log.read_text(errors='replace')}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(self._address, self._port, timeout=2)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def stop(self) -> None:
        """End it and its children."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path, address: str, port: int = 5000) -> Iterator[MlflowServer]:
    """A running server."""
    server = MlflowServer(folder, address, port)
    try:
        with_databases("served-artifacts", [folder / "mlflow.db"], server.start)
        yield server
    finally:
        server.stop()
