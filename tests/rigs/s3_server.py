"""The S3 server of the local services on its own, on loopback or on a host of the rig."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flows.services.store_keys import Pair, derive, for_rclone
from flows.services.store_rights import BUCKETS

_REGION = "us-east-1"
_START_SECONDS = 20

# Starts a command with additional variables, and its output in a log, on this machine or on a host.
Launch = Callable[[list[str], dict[str, str], Path], subprocess.Popen[bytes]]


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server, with its address and keys."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    folder: Path
    """Has a folder per bucket and a file per object, so that tests can read the bytes without a client."""

    def environment(self, url: str | None = None, *, role: str | None = None) -> dict[str, str]:
        """The variables for s3fs and boto3 to use the server, or a proxy in front of it if its URL is given."""
        pair = self.administrator if role is None else self.pairs[role]
        return {
            **pair.environment(),
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_DEFAULT_REGION": _REGION,
        }

    @property
    def administrator(self) -> Pair:
        """The pair with all rights."""
        return Pair(access_key=self.access_key, secret_key=self.secret_key)

    @property
    def pairs(self) -> dict[str, Pair]:
        """The pair of each role (flows/services/store_rights.py)."""
        return derive(self.administrator)

    def bucket(self, name: str) -> Path:
        """The folder of a bucket."""
        return self.folder / name


@contextmanager
def serve(folder: Path, address: str, port: int, launch: Launch) -> Iterator[S3Server]:
    """Serve a folder as S3 at an address, as the local services do, and create the buckets.

    Raises RuntimeError with the log when the server does not start.
    """
    for bucket in BUCKETS:
        (folder / bucket).mkdir(parents=True, exist_ok=True)
    server = S3Server(
        url=f"http://{address}:{port}",
        access_key=f"igpt{secrets.token_hex(8)}",
        secret_key=secrets.token_urlsafe(32),
        folder=folder,
    )
    rclone = str(Path(sys.executable).with_name("rclone"))
    command = [sys.executable, "-m", "flows.services.store_gate", rclone, str(folder), f"{address}:{port}"]
    log = folder.with_name(f"{folder.name}.log")
    process = launch(command, for_rclone(server.administrator), log)
    try:
        _wait(address, port, process, log)
        yield server
    finally:
        process.terminate()  # it ends rclone, and removes its socket
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server does not start: {log.read_text(errors='replace')}") from None
            time.sleep(0.05)
        else:
            return


def launch_here(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command on this machine, as `Launch` describes."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env={"PATH": "/usr/bin:/bin", "HOME": str(log.parent), **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
