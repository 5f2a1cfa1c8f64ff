"""Start processes with the libraries already imported, by forking: the imports take five seconds, a fork nothing.

A server imports what the command line needs, in the environment in which it is started, and forks for every request.
A fork has the server's environment and working directory, and writes its output to files.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_START_SECONDS = 120
_DIGITS = 12  # the width of a process id or an exit status in a message
_SERVER = "from tests.rigs import warm_start; warm_start.serve({socket!r})()"


class WarmProcess:
    """A forked process, with the methods of subprocess.Popen."""

    def __init__(self, connection: socket.socket, out: Path, err: Path) -> None:
        self.returncode: int | None = None
        self._connection = connection
        self._files = (out, err)
        self.pid = int(connection.recv(_DIGITS))

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0.001)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(int(self._connection.recv(_DIGITS)))
            except TimeoutError:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0) from None
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns its standard output and standard error."""
        self.wait(timeout)
        out, err = (path.read_text() for path in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


class WarmStart:
    """The server: a context manager. It starts when it is first asked for a process. Forked processes outlive it."""

    def __init__(self, root: Path, variables: Mapping[str, str] | None = None) -> None:
        """Describe a server with a working directory, and variables in addition to those of this process."""
        self._root = root
        self._variables = variables or {}
        self._server: subprocess.Popen[bytes] | None = None
        self._launching = threading.Lock()

    def __enter__(self) -> Self:
        self._environment = {**os.environ, **self._variables}
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._socket = f"{self._folder.name}/socket"
        self._count = 0
        self._log = Path(self._folder.name) / "log"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
        self._folder.cleanup()

    def command(self, *arguments: str, variables: Mapping[str, str] | None = None) -> WarmProcess:
        """Start the command line with these arguments, and with variables that no library reads when it is imported."""
        return self._start({"arguments": arguments, "variables": dict(variables or {})})

    def program(self, code: str, *arguments: str) -> WarmProcess:
        """Start Python code with these arguments, as `python -c` does."""
        return self._start({"arguments": arguments, "code": code})

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", _SERVER.format(socket=self._socket)],
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _start(self, request: dict[str, Any]) -> WarmProcess:
        with self._launching:
            self._server = self._server or self._launch()
            self._count += 1
            out, err = (Path(self._folder.name) / f"{self._count}.{name}" for name in ("out", "err"))
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                connection.connect(self._socket)
                break
            except OSError:
                assert self._server.poll() is None and time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.05)
        connection.sendall(json.dumps({**request, "out": str(out), "err": str(err)}).encode() + b"\n")
        return WarmProcess(connection, out, err)


def serve(path: str) -> Callable[[], object]:
    """Import the libraries, then fork for every request on a socket; returns, in the fork only, what it shall run."""
    from flows.services import settings
    from pipeline.garbage import collect_less_often

    collect_less_often()
    settings.activate(settings.default_home())
    import flows.build_dataset
    import flows.cli.main
    import flows.pretrain
    import flows.probe
    import flows.refresh

    gc.freeze()  # else the first search for cycles in each fork would copy the pages of all objects
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        Path(f"{path}.new").rename(path)  # only now clients can connect, and it listens already
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    request = json.loads(connection.makefile("r").readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        connection.sendall(f"{child:{_DIGITS}}".encode())
        _, status = os.waitpid(child, 0)
        with suppress(OSError):  # the client may have gone
            connection.sendall(f"{status:{_DIGITS}}".encode())
        os._exit(0)
    connection.close()
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(request.get("variables", {}))
    sys.argv = ["igpt", *request["arguments"]]
    if "code" not in request:
        return flows.cli.main.main
    return lambda: exec(compile(request["code"], "<request>", "exec"), {"__name__": "__main__"})
