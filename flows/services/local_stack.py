"""The services of the production layout on one machine, without containers: S3, Prefect, MLflow and Ray on loopback.

One folder, `home`, holds all their data, logs, and services.json with credentials, ports and process ids. services.py
defines the services, process.py starts, finds and ends their processes.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pydantic import TypeAdapter, ValidationError

from flows.services.ports import HOST, free_port, is_free
from flows.services.process import (
    Service,
    end,
    error_line,
    find_problem,
    is_alive,
    process_tree,
    service_processes,
    start,
)
from flows.services.services import Stack, services, short_folder
from flows.services.store_keys import derive, write, write_steps
from flows.services.store_rights import BUCKETS
from pipeline.errors import IgptError

__all__ = ["ServiceStatus", "Stack", "down", "load", "process_ids", "status", "up"]

_NAMES = ("s3", "prefect", "mlflow", "ray")
_START_SECONDS = 180

Say = Callable[[str], None]  # takes a line for the user


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """The state of one service."""

    name: str
    url: str
    pid: int | None
    """Its main process, if that is alive."""
    answers: bool
    """Whether it answered a request with the recorded credentials."""
    detail: str
    """Why it does not answer, in one line."""


@dataclass(frozen=True, kw_only=True)
class _RecordedProcess:
    """A started process. The start time distinguishes it from a later one with the same id."""

    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            # The clock may have been adjusted by a little; ids are reused only after thousands of others.
            if abs(process.create_time() - self.started) < 1 and is_alive(process):
                return process
        return None


@dataclass(kw_only=True)
class _Record:
    """The content of services.json. `down` empties `processes`; the rest stays for the next `up`."""

    s3_access_key: str
    s3_secret_key: str = field(repr=False)
    ray_token: str = field(repr=False)
    ray_folder: Path
    ports: dict[str, int]
    processes: dict[str, _RecordedProcess]

    def __post_init__(self) -> None:
        if set(self.ports) != set(_NAMES) or not set(self.processes) <= set(_NAMES):
            raise ValueError(f"the services are {_NAMES}")

    def stack(self, home: Path) -> Stack:
        urls = {name: f"http://{HOST}:{port}" for name, port in self.ports.items()}
        return Stack(
            s3_url=urls["s3"],
            s3_access_key=self.s3_access_key,
            s3_secret_key=self.s3_secret_key,
            keys_folder=home / "keys",
            signing_key=home / "signing-key",
            trusted_keys=home / "trusted-keys",
            prefect_url=urls["prefect"],
            mlflow_url=urls["mlflow"],
            ray_address=f"{HOST}:{self.ports['ray']}",
            ray_token_path=home / "ray-token",
        )

    def services(self, home: Path) -> list[Service]:
        return services(home, self.stack(home), self.ray_folder)

    def find(self, name: str) -> psutil.Process | None:
        return self.processes[name].find() if name in self.processes else None


_JSON = TypeAdapter(_Record)


def up(home: Path, *, say: Say = lambda line: None) -> Stack:
    """Start the services that do not answer, wait until they do, and return the addresses of all.

    Services that answer are not touched. A service keeps its port unless another program has taken it; then it moves
    to a new port, and the services that use its address are restarted.
    Raises IgptError when a service cannot be started. On that and on Ctrl-C, what this call started is ended.
    """
    home = home.resolve()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
    except OSError as error:
        raise IgptError(f"{home} cannot hold the services: {error.strerror}; give another folder") from None
    with _locked(home, say):
        record = _read(home) or _new_record(home)
        stack = record.stack(home)
        write_steps(stack.keys_folder, derive(stack.administrator))
        write(stack.ray_token_path, record.ray_token)
        _make_signing_key(stack)
        to_start = _end_unusable(home, record, say)
        if to_start:
            _make_folders(home, record, to_start)
            _start(home, record, to_start, say)
        return record.stack(home)


def _make_signing_key(stack: Stack) -> None:
    """Make the key that signs models where there is none, and trust it; those before stay trusted."""
    if stack.signing_key.exists() and stack.trusted_keys.exists():
        return
    # Its library is not needed to start a command.
    from igpt_model.registry.signatures import line_of, public_key_of  # noqa: PLC0415

    if not stack.signing_key.exists():
        write(stack.signing_key, secrets.token_hex(32), mode=0o600)
    public_key = public_key_of(bytes.fromhex(stack.signing_key.read_text()))
    trusted = stack.trusted_keys.read_text() if stack.trusted_keys.exists() else ""
    write(stack.trusted_keys, f"{trusted}{line_of(public_key, 'made by igpt up')}\n", mode=0o600)


def mlflow_database(home: Path) -> str:
    """The SQLAlchemy URL of the database of a home's MLflow server."""
    return f"sqlite:///{home.absolute()}/mlflow/mlflow.db"


def load(home: Path) -> Stack | None:
    """The recorded addresses of a folder's services, without checking them. None unless all were started."""
    home = home.resolve()
    record = _read(home)
    return record.stack(home) if record is not None and len(record.processes) == len(_NAMES) else None


def status(home: Path) -> list[ServiceStatus]:
    """Check every service of a folder. Empty if none were ever started."""
    home = home.resolve()
    record = _read(home)
    return [] if record is None else [_status(service, record) for service in record.services(home)]


def _status(service: Service, record: _Record) -> ServiceStatus:
    process = record.find(service.name)
    if process is not None:
        problem = find_problem(service, process)
        detail = "" if problem is None else f"{problem}; its log is {service.log}"
    else:
        recorded = record.processes.get(service.name)
        detail = "it is not started" if recorded is None else f"its process {recorded.pid} has ended"
        if not is_free(service.port):
            detail += f" and another program has its port {service.port}"
        detail += "; `igpt up` starts it"
    pid = None if process is None else process.pid
    return ServiceStatus(name=service.name, url=service.url, pid=pid, answers=not detail, detail=detail)


def down(home: Path, *, say: Say = lambda line: None) -> None:
    """End the recorded processes and those they started. Data, ports and credentials stay."""
    home = home.resolve()
    path = home / "services.json"
    if not path.exists():
        say(f"no services were started in {home}")
        return
    with _locked(home, say):
        try:
            record = _read(home)
        except IgptError:
            record = None
        ended = _new_record(home) if record is None else record
        # S3 last: the others may write to it while they end.
        for names in (["ray", "prefect", "mlflow"], ["s3"]):
            for name in _end(home, ended, names):
                say(f"{name} has ended")
        if record is not None:
            _write(home, record)
        else:
            path.replace(path.with_suffix(".damaged"))
            say(f"{path} was damaged and is kept as services.damaged; the next `igpt up` creates new credentials")


def process_ids(home: Path) -> list[int]:
    """The ids of the services' main processes that are alive; all others are their children."""
    record = _read(home.resolve())
    processes = [record.find(name) for name in _NAMES] if record is not None else []
    return [process.pid for process in processes if process is not None]


def _new_record(home: Path) -> _Record:
    ports: dict[str, int] = {}
    for name in _NAMES:
        ports[name] = free_port(ports.values())
    return _Record(
        s3_access_key=f"igpt{secrets.token_hex(8)}",
        s3_secret_key=secrets.token_urlsafe(32),
        ray_token=secrets.token_hex(32),
        ray_folder=short_folder(home),
        ports=ports,
        processes={},
    )


def _end_unusable(home: Path, record: _Record, say: Say) -> set[str]:
    """End services that do not answer or that use an address that changes, choose ports, and return what to start."""
    to_start = set()
    for service in record.services(home):
        process = record.find(service.name)
        problem = "" if process is None else find_problem(service, process)
        if problem is not None:
            to_start.add(service.name)
            if process is not None:
                say(f"{service.name}: {problem}, starting it again")
            elif service.name in record.processes:
                say(f"{service.name}: its process has ended, starting it again")
    _end(home, record, to_start)
    moved = set()
    for name in sorted(to_start, key=_NAMES.index):
        if not is_free(old := record.ports[name]):
            record.ports[name] = free_port(record.ports.values())
            say(f"{name}: another program has port {old}, moving to {record.ports[name]}")
            moved.add(name)
    for service in record.services(home):
        changed = service.depends_on & moved
        if changed and service.name not in to_start:
            say(f"{service.name}: starting it again, because {' and '.join(sorted(changed))} moved")
            to_start.add(service.name)
            _end(home, record, [service.name])
    return to_start


def _make_folders(home: Path, record: _Record, to_start: Collection[str]) -> None:
    for folder in ["logs", *_NAMES, *(f"s3/{bucket}" for bucket in BUCKETS)]:
        (home / folder).mkdir(mode=0o700, exist_ok=True)
    if "ray" in to_start:
        shutil.rmtree(record.ray_folder, ignore_errors=True)
        try:
            record.ray_folder.mkdir(mode=0o700)
        except OSError as error:
            raise IgptError(
                f"{record.ray_folder}, which Ray needs, cannot be created: {error.strerror}; remove it"
            ) from None


def _start(home: Path, record: _Record, to_start: Collection[str], say: Say) -> None:
    waiting = {}
    began = time.monotonic()
    try:
        for service in record.services(home):
            if service.name in to_start:
                process = start(service)
                waiting[service.name] = (service, process)
                record.processes[service.name] = _RecordedProcess(pid=process.pid, started=process.create_time())
                _write(home, record)
        while waiting:
            for service, process in list(waiting.values()):
                if not is_alive(process):
                    raise IgptError(f"{service.name} ended while it started: {error_line(service.log)} ({service.log})")
                problem = find_problem(service, process)
                seconds = time.monotonic() - began
                if problem is None:
                    del waiting[service.name]
                    say(f"{service.name} answers at {service.url} ({seconds:.0f} s)")
                elif seconds > _START_SECONDS:
                    raise IgptError(f"{service.name} does not work after {_START_SECONDS} s: {problem} ({service.log})")
            time.sleep(0.1)
    except BaseException:
        _end(home, record, to_start)
        _write(home, record)
        raise


def _end(home: Path, record: _Record, names: Collection[str]) -> list[str]:
    """End services, and return the names of those whose main process was running."""
    roots = {name: root for name in names if (root := record.find(name)) is not None}
    children = [process for root in roots.values() for process in process_tree(root)]
    # A main process ends its children in order. Signalled together with its head, a Ray node waits ten seconds for it.
    end(roots.values(), timeout_seconds=10)
    # The remaining processes have no parent that ends them, and Ray's agents ignore SIGTERM. Twice, because a process
    # may start another while it ends.
    for _ in range(2):
        remaining = {
            process.pid: process for process in [*children, *service_processes(home, names, record.ray_folder)]
        }
        end(remaining.values(), timeout_seconds=1)
    for name in names:
        record.processes.pop(name, None)
    if "ray" in names:
        shutil.rmtree(record.ray_folder, ignore_errors=True)
    return list(roots)


@contextmanager
def _locked(home: Path, say: Say) -> Iterator[None]:
    with (home / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another igpt that starts or ends the services of {home}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(home: Path) -> _Record | None:
    path = home / "services.json"
    try:
        return _JSON.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise IgptError(f"{home} is not a folder; give one with --home or IGPT_HOME") from None
    except OSError as error:
        raise IgptError(f"{path} cannot be read: {error.strerror}; the services belong to another user") from None
    except ValidationError:
        raise IgptError(f"{path} is damaged; `igpt down` ends its services and renames it, data stay") from None


def _write(home: Path, record: _Record) -> None:
    # A temporary file has mode 0600 from the start; the rename makes the write atomic.
    with tempfile.NamedTemporaryFile(dir=home, prefix=".services.", delete=False) as partial:
        partial.write(_JSON.dump_json(record, indent=1))
        partial.flush()
        os.fsync(partial.fileno())
    Path(partial.name).replace(home / "services.json")
