"""A store that stops answering while a process works: failed work ends soon, with its own error."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.services.ports import free_port
from pipeline.errors import IgptError
from pipeline.store import credentials, lease, objects, presence, s3
from tests.rigs.s3_server import launch_here, serve

pytestmark = [pytest.mark.services, pytest.mark.faults]


@dataclass(frozen=True)
class Store:
    """An S3 server that can be frozen: it then accepts connections and does not answer."""

    process: subprocess.Popen[bytes]

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    started: list[subprocess.Popen[bytes]] = []

    def launch(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        started.append(launch_here(command, environment, log))
        return started[0]

    with serve(tmp_path / "data", "127.0.0.1", free_port(), launch) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        credentials.forget_clients()  # filesystems of another test's server
        running = Store(started[0])
        try:
            yield running
        finally:
            running.thaw()
            credentials.forget_clients()


@pytest.mark.parametrize("size", [pytest.param(10, marks=pytest.mark.sample), 14_000_000], ids=["small", "large"])
def test_no_answer_to_a_put_is_an_error_and_a_late_one_is_none(
    store: Store, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_SLOWEST_BYTES_PER_SECOND", 4_000_000)
    objects.write_bytes("s3://raw/object", b"before", patient=False)
    store.freeze()
    with pytest.raises(IgptError, match=r"^s3://raw/object: the object store does not answer \(no response to put_"):
        objects.write_bytes("s3://raw/object", bytes(size), patient=False)
    store.thaw()
    objects.write_bytes("s3://raw/object", b"after")
    assert objects.read_bytes("s3://raw/object") == b"after"


@pytest.mark.parametrize(
    "leave", [Store.freeze, pytest.param(Store.kill, marks=pytest.mark.sample)], ids=["silent", "gone"]
)
def test_work_that_failed_ends_soon_and_says_why(store: Store, leave: Callable[[Store], None]) -> None:
    began = time.monotonic()
    with (
        pytest.raises(ZeroDivisionError),
        lease.hold("s3://datasets/digits", dead_seconds=2),
        presence.building("s3://datasets/digits"),
    ):
        leave(store)
        time.sleep(1)  # a renewal is in flight
        _ = 1 / 0
    # Requests of a build are retried for two minutes, but those at the end of a block only for seconds.
    assert time.monotonic() - began < 60
