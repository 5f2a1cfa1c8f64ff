"""Launches a worker of a Ray node: forked from a process that has imported the large libraries, which takes seconds.

node.py gives it to Ray in the place of Ray's own program of this name. The first worker of a node starts the server,
which is a child of the node and ends with it. It imports nothing of Ray, whose random numbers would be the same in all
forks, and nothing of this project, of which a running node would keep an old state.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are no packages

import argparse
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# What workers of builds, trainings and probes import. Optimizers of PyTorch load torch._dynamo.
LIBRARIES = (
    "numpy", "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "pandas",
    "pyarrow.parquet", "pyarrow.fs", "s3fs", "obstore", "safetensors.torch", "PIL.Image", "pydantic", "requests",
)  # fmt: skip
_NEW_OBJECTS = 25_000  # as in pipeline/garbage.py
_START_SECONDS = 40.0  # Ray waits for a worker for 60
_TRY_SECONDS = 0.02
_STREAMS = (0, 1, 2)
_SIZE_BYTES = 4
_DEFAULT_WORKER = "default_worker.py"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A worker to start."""

    program: list[str]
    """Ray's program and its arguments."""
    variables: dict[str, str]
    """The environment with which Ray has started this process."""
    changes: dict[str, str]
    """Variables of the job's runtime environment."""
    folder: str
    """The working directory."""
    group: int
    """The process group that Ray ends with the worker, so that no process of its own is left."""


def main(arguments: Sequence[str]) -> None:
    """Launch a worker with the arguments that Ray gives to its own setup_worker.py."""
    if arguments[:1] == ["--serve"]:
        become(serve(Path(arguments[1]), lock=int(arguments[2]), node=int(arguments[3])))
        return
    launch = read(arguments)
    name = "--raylet-name="
    sockets = [argument.removeprefix(name) for argument in arguments if argument.startswith(name)]
    if launch is None or not sockets or not _fork(launch, Path(f"{sockets[0]}-forks")):
        own = find_spec("ray._private.workers.setup_worker")
        assert own is not None and own.origin is not None
        os.execv(sys.executable, [sys.executable, own.origin, *arguments])


def read(arguments: Sequence[str]) -> Launch | None:
    """The worker that the arguments describe; None for what must run in a new process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    known, program = parser.parse_known_args(arguments)
    context: dict[str, Any] = json.loads(known.serialized_runtime_env_context or "{}")
    is_own = context.get("py_executable") in (None, sys.executable)
    if not program or Path(program[0]).name != _DEFAULT_WORKER or not is_own:
        return None
    if context.get("command_prefix") or context.get("override_worker_entrypoint"):
        return None
    return Launch(
        program=program,
        variables=dict(os.environ),
        changes=context.get("env_vars") or {},
        folder=str(Path.cwd()),
        group=os.getpgrp(),
    )


def _fork(launch: Launch, path: Path) -> bool:
    """Let the server of this node fork the worker, and start the server if there is none."""
    started = False
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(str(path))
            request = json.dumps(asdict(launch)).encode()
            socket.send_fds(connection, [len(request).to_bytes(_SIZE_BYTES, "big")], _STREAMS)
            connection.sendall(request)
            if connection.recv(1):
                return True
        if (lock := _lock(path)) is not None:
            if started:  # it has ended: a library does not load
                return False
            _start(path, lock)
            started = True
        time.sleep(_TRY_SECONDS)
    return False


def _lock(path: Path) -> int | None:
    """The lock that the server of a node holds while it lives; None if there is one."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _start(path: Path, lock: int) -> None:
    """Make this process, a child of the node, its server, and return in a child of this process."""
    node = os.getppid()
    if os.fork() == 0:
        os.close(lock)
        return
    os.set_inheritable(lock, True)
    os.execv(sys.executable, [sys.executable, __file__, "--serve", str(path), str(lock), str(node)])


def serve(path: Path, *, lock: int, node: int) -> Launch:
    """Import the libraries and fork for every request until the node ends; returns, in the forks only, the request."""
    os.setpgid(0, os.getpgid(node))  # Ray ends the group in which it has started this process with the first worker
    own = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for tasks of one CPU; trainings set their number
    gc.disable()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    gc.freeze()  # else the first search for cycles in each fork would copy the pages of all objects
    gc.enable()
    if own is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = own
    ended = os.pidfd_open(node)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        new.chmod(0o600)
        listener.listen(socket.SOMAXCONN)
        new.rename(path)  # only now clients can connect, and it listens already
        while True:
            if ended in select.select([listener.fileno(), ended], [], [])[0]:
                path.unlink(missing_ok=True)
                sys.exit()
            connection, _ = listener.accept()
            with connection, suppress(OSError, ValueError):
                launch, streams = _receive(connection)
                if os.fork() == 0:
                    _join(launch.group)
                    with suppress(OSError):  # the client may have gone
                        connection.sendall(b"1")
                    break
                for stream in streams:
                    os.close(stream)
    for stream, number in zip(streams, _STREAMS, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.close(lock)
    os.close(ended)
    return launch


def _join(group: int) -> None:
    """Put this process into a process group, or into one of its own, but leave that of the node."""
    try:
        os.setpgid(0, group)
    except OSError:
        os.setpgid(0, 0)


def _receive(connection: socket.socket) -> tuple[Launch, list[int]]:
    """A request, and the standard streams of the process that has sent it."""
    size, streams, _, _ = socket.recv_fds(connection, _SIZE_BYTES, len(_STREAMS))
    with connection.makefile("rb") as stream:
        return Launch(**json.loads(stream.read(int.from_bytes(size, "big")))), streams


def become(launch: Launch) -> None:
    """Run Ray's program in this process, a fork of the server."""
    import numpy as np  # noqa: PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    np.random.seed()  # of which all forks would have the same numbers; Python's own do that themselves
    os.chdir(launch.folder)
    os.environ.clear()
    os.environ.update(launch.variables)
    from ray._private.utils import update_envs  # noqa: PLC0415 (reads its variables when it is imported)

    update_envs(launch.changes)
    sys.argv = launch.program
    sys.path.insert(0, str(Path(launch.program[0]).parent))
    runpy.run_path(launch.program[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
