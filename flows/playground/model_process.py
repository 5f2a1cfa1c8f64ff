"""The server's side of a model's process: starts it, asks it, starts it again when it died, and ends it."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NoReturn

from flows.playground.facts import Facts
from flows.playground.protocol import Draw, Drawn, Failed, Growing, Look, Ready, Seen, Stop, Stopped
from pipeline.errors import IgptError

_CLOSE_SECONDS, _END_SECONDS = 1.0, 5.0
_WORKER = "flows.playground.worker"


class ModelProcess:
    """A model in a process of its own. Ask it once at a time; all but `stop` and `end` block."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._has_ended = self._is_stopped = False
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # a message may be written in two parts

    def start(self) -> Facts:
        """Start the process, and wait until its model is open. Raises IgptError when it cannot be opened."""
        ours, childs = socket.socketpair()
        with childs, self._lock:
            if self._has_ended:
                ours.close()
                raise IgptError("the playground has ended")
            # Of this process, which survives one that is killed.
            self._files = tempfile.TemporaryDirectory(prefix="igpt-playground-")
            self._child = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(childs.fileno()), self.reference, self._files.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[childs.fileno()],
                start_new_session=True,  # Ctrl-C is for the server, which then ends this process
            )
            self._connection = Connection(ours.detach())
        answer = self._receive()
        if isinstance(answer, Failed):
            with self._lock:  # it ends by itself; the next request must not ask one that is gone
                self._reap()
            raise IgptError(answer.line)
        assert isinstance(answer, Ready)
        return answer.facts

    async def draw(self, asked: Draw, see: Callable[[Growing], None]) -> Drawn | None:
        """Draw pictures, which `see` is shown as they grow; None: it was stopped. Raises IgptError."""
        answer = await self._ask(asked, see)
        assert isinstance(answer, Drawn | Stopped)
        return answer if isinstance(answer, Drawn) else None

    async def look(self, asked: Look) -> Seen:
        """What the model makes of a picture. Raises IgptError."""
        answer = await self._ask(asked, lambda _: None)
        assert isinstance(answer, Seen)
        return answer

    def stop(self) -> None:
        """End the drawing that goes on, if one does; also one that is still to be sent, while a process starts."""
        self._is_stopped = True
        self._send_stop()

    def end(self) -> None:
        """End the process for good."""
        with self._lock:
            self._has_ended = True
            self._reap()

    def _send_stop(self) -> None:
        if self._connection is not None:
            with suppress(OSError), self._sending:
                self._connection.send(Stop())

    async def _ask(self, asked: Draw | Look, see: Callable[[Growing], None]) -> Drawn | Seen | Stopped:
        loop = asyncio.get_running_loop()
        self._is_stopped = False

        def see_in_loop(growing: Growing) -> None:
            loop.call_soon_threadsafe(see, growing)

        exchange = asyncio.ensure_future(asyncio.to_thread(self._exchange, asked, see_in_loop))
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            # Whoever asked has gone. The pipe must be empty before the next one asks.
            self.stop()
            with suppress(Exception):
                await exchange
            raise

    def _exchange(self, asked: Draw | Look, see: Callable[[Growing], None]) -> Drawn | Seen | Stopped:
        """Send a request and wait for its answer, in a thread."""
        if self._child is None:
            self.start()
        assert self._connection is not None
        try:
            with self._sending:
                self._connection.send(asked)
        except OSError:
            self._raise_died()
        if self._is_stopped:  # before there was a drawing that a worker could end
            self._send_stop()
        while True:
            answer = self._receive()
            if isinstance(answer, Failed):
                raise IgptError(answer.line)
            if not isinstance(answer, Growing):
                assert isinstance(answer, Drawn | Seen | Stopped)
                return answer
            see(answer)

    def _receive(self) -> object:
        assert self._connection is not None
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._raise_died()

    def _raise_died(self) -> NoReturn:
        with self._lock:
            status = self._reap()
        raise IgptError(
            f"{self.reference}: the model's process ended with status {status}, perhaps for want of memory; the next "
            "request starts it again"
        )

    def _reap(self) -> int | None:
        """End the process, if there is one, and remove its files; returns its status."""
        child, connection, files = self._child, self._connection, self._files
        self._child = self._connection = self._files = None
        try:
            return _end(child, connection)
        finally:
            if files is not None:
                files.cleanup()


def _end(child: subprocess.Popen[bytes] | None, connection: Connection | None) -> int | None:
    """End a process by closing its pipe, or else by a signal; returns its status."""
    if connection is not None:
        # A thread may be reading, on whose account closing alone would end nothing.
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as ending:
            ending.shutdown(socket.SHUT_RDWR)
        connection.close()
    if child is None:
        return None
    with suppress(subprocess.TimeoutExpired):
        return child.wait(_CLOSE_SECONDS)
    child.terminate()
    try:
        return child.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
