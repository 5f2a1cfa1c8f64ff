"""The services of the production layout on one machine, without containers: S3, Prefect, MLflow and Ray on loopback.

All of it lies in one folder, `home`: data, logs, and services.json with credentials, ports and process ids. How a
single service is started and asked is in services.py, its processes in service_process.py.
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
from flows.services.process import Service, complaint, end, family, is_alive, last_line, start, strays
from flows.services.services import BUCKETS, Stack, services, short_folder
from pipeline.errors import IgptError

__all__ = ["ServiceStatus", "Stack", "down", "load", "process_ids", "status", "up"]

_NAMES = ("s3", "prefect", "mlflow", "ray")
_START_SECONDS = 180

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """How one service is."""

    name: str
    url: str
    pid: int | None
    """Its first process, while that is alive."""
    answers: bool
    """Whether it answered a real request, made with the recorded credentials."""
    detail: str
    """One line: why it does not answer."""


@dataclass(frozen=True, kw_only=True)
class _RecordedProcess:
    """A started process. The start time tells it from another that got the same id later."""

    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            # The system's clock may have been set by a little meanwhile; an id returns only after thousands of others.
            if abs(process.create_time() - self.started) < 1 and is_alive(process):
                return process
        return None


@dataclass(kw_only=True)
class _Record:
    """What services.json holds. `down` empties `processes`; the rest stays for the next `up`."""

    s3_access_key: str
    s3_secret_key: str = field(repr=False)
    ray_token: str = field(repr=False)
    ray_folder: Path
    ports: dict[str, int]
    processes: dict[str, _RecordedProcess]

    def __post_init__(self) -> None:
        if set(self.ports) != set(_NAMES) or not set(self.processes) <= set(_NAMES):
            raise ValueError(f"the services are {_NAMES}")

    def stack(self) -> Stack:
        urls = {name: f"http://{HOST}:{port}" for name, port in self.ports.items()}
        return Stack(
            s3_url=urls["s3"],
            s3_access_key=self.s3_access_key,
            s3_secret_key=self.s3_secret_key,
            prefect_url=urls["prefect"],
            mlflow_url=urls["mlflow"],
            ray_address=f"{HOST}:{self.ports['ray']}",
            ray_token=self.ray_token,
        )

    def services(self, home: Path) -> list[Service]:
        return services(home, self.stack(), self.ray_folder)

    def find(self, name: str) -> psutil.Process | None:
        return self.processes[name].find() if name in self.processes else None


_JSON = TypeAdapter(_Record)


def up(home: Path, *, report: Report = lambda line: None) -> Stack:
    """Start the services that do not answer, wait until they do, and return how to reach all of them.

    What answers is left alone. A service keeps its port from time to time; where another program took it meanwhile, the
    service moves, and so that no service talks to an old address, those that were told it are started again.
    Raises IgptError when one cannot be started; what this call started is then ended again, as on Ctrl-C.
    """
    home = home.resolve()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
    except OSError as error:
        raise IgptError(f"{home} cannot be the folder of the services: {error.strerror}; name another") from None
    with _locked(home, report):
        record = _read(home) or _new_record(home)
        wanted = _end_unusable(home, record, report)
        if wanted:
            _make_folders(home, record, wanted)
            _start(home, record, wanted, report)
        return record.stack()


def load(home: Path) -> Stack | None:
    """How to reach the services of a folder, by the record, without asking them. None unless all were started."""
    record = _read(home.resolve())
    return record.stack() if record is not None and len(record.processes) == len(_NAMES) else None


def status(home: Path) -> list[ServiceStatus]:
    """Ask every service of a folder whether it works. Empty where none were ever started."""
    home = home.resolve()
    record = _read(home)
    return [] if record is None else [_status(service, record) for service in record.services(home)]


def _status(service: Service, record: _Record) -> ServiceStatus:
    process = record.find(service.name)
    if process is not None:
        reason = complaint(service, process)
        detail = "" if reason is None else f"{reason}; its log is {service.log}"
    else:
        known = record.processes.get(service.name)
        detail = "it is not started" if known is None else f"its process {known.pid} has ended"
        if not is_free(service.port):
            detail += f" and another program has its port {service.port}"
        detail += "; `igpt up` starts it"
    pid = None if process is None else process.pid
    return ServiceStatus(name=service.name, url=service.url, pid=pid, answers=not detail, detail=detail)


def down(home: Path, *, report: Report = lambda line: None) -> None:
    """End the recorded processes and all that they started, nothing else. Data, ports and credentials stay."""
    home = home.resolve()
    path = home / "services.json"
    if not path.exists():
        report(f"no services were started in {home}")
        return
    with _locked(home, report):
        try:
            record = _read(home)
        except IgptError:
            record = None
        ended = _new_record(home) if record is None else record
        # S3 last: the others may have something to write while they end.
        for names in (("ray", "prefect", "mlflow"), ("s3",)):
            for name in _end(home, ended, names):
                report(f"{name} has ended")
        if record is not None:
            _write(home, record)
        else:
            path.replace(path.with_suffix(".damaged"))
            report(f"{path} was damaged and is set aside; the next `igpt up` makes new credentials")


def process_ids(home: Path) -> list[int]:
    """The first processes of the services that are alive; all else that they run is below these."""
    record = _read(home.resolve())
    found = [record.find(name) for name in _NAMES] if record is not None else []
    return [process.pid for process in found if process is not None]


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


def _end_unusable(home: Path, record: _Record, report: Report) -> set[str]:
    """End what does not answer and what a move concerns, choose ports, and return the services to be started."""
    wanted = set()
    for service in record.services(home):
        process = record.find(service.name)
        reason = "" if process is None else complaint(service, process)
        if reason is not None:
            wanted.add(service.name)
            if process is not None:
                report(f"{service.name}: {reason}, starting it again")
            elif service.name in record.processes:
                report(f"{service.name}: its process has ended, starting it again")
    _end(home, record, wanted)
    moved = set()
    for name in sorted(wanted, key=_NAMES.index):
        if not is_free(old := record.ports[name]):
            record.ports[name] = free_port(record.ports.values())
            report(f"{name}: another program has port {old}, moving to {record.ports[name]}")
            moved.add(name)
    misled = {service.name: service.told & moved for service in record.services(home)}
    for name, sources in misled.items():
        if sources and name not in wanted:
            report(f"{name}: starting it again, because {' and '.join(sorted(sources))} moved")
            wanted.add(name)
            _end(home, record, [name])
    return wanted


def _make_folders(home: Path, record: _Record, wanted: Collection[str]) -> None:
    for folder in ("logs", *_NAMES, *(f"s3/{bucket}" for bucket in BUCKETS)):
        (home / folder).mkdir(exist_ok=True)
    if "ray" in wanted:
        shutil.rmtree(record.ray_folder, ignore_errors=True)
        try:
            record.ray_folder.mkdir(mode=0o700)
        except OSError as error:
            raise IgptError(
                f"{record.ray_folder}, which Ray needs, cannot be made: {error.strerror}; remove it"
            ) from None


def _start(home: Path, record: _Record, wanted: Collection[str], report: Report) -> None:
    waiting = {}
    began = time.monotonic()
    try:
        for service in record.services(home):
            if service.name in wanted:
                process = start(service)
                waiting[service.name] = (service, process)
                record.processes[service.name] = _RecordedProcess(pid=process.pid, started=process.create_time())
                _write(home, record)
        while waiting:
            for service, process in list(waiting.values()):
                if not is_alive(process):
                    raise IgptError(f"{service.name} ended while it started: {last_line(service.log)} ({service.log})")
                reason = complaint(service, process)
                seconds = time.monotonic() - began
                if reason is None:
                    del waiting[service.name]
                    report(f"{service.name} answers at {service.url} ({seconds:.0f} s)")
                elif seconds > _START_SECONDS:
                    raise IgptError(f"{service.name} does not work after {_START_SECONDS} s: {reason} ({service.log})")
            time.sleep(0.1)
    except BaseException:
        _end(home, record, wanted)
        _write(home, record)
        raise


def _end(home: Path, record: _Record, names: Collection[str]) -> list[str]:
    """End services, and return the names of those of which something was running."""
    roots = {name: root for name in names if (root := record.find(name)) is not None}
    below = [process for root in roots.values() for process in family(root)]
    # The first process ends its own in good order; Ray's node, asked together with its head, waits ten seconds for it.
    end(roots.values(), patience_seconds=10)
    # What is left has nobody to end it; Ray's agents do not even when they are asked. Twice, because a process may
    # start another while it ends.
    for _ in range(2):
        left = {process.pid: process for process in (*below, *strays(home, names, record.ray_folder))}
        end(left.values(), patience_seconds=1)
    for name in names:
        record.processes.pop(name, None)
    if "ray" in names:
        shutil.rmtree(record.ray_folder, ignore_errors=True)
    return list(roots)


@contextmanager
def _locked(home: Path, report: Report) -> Iterator[None]:
    with (home / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another igpt that starts or ends the services of {home}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(home: Path) -> _Record | None:
    path = home / "services.json"
    try:
        return _JSON.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IgptError(f"{path} cannot be read: {error.strerror}; the services belong to another user") from None
    except ValidationError:
        raise IgptError(f"{path} is damaged; `igpt down` ends its services and sets it aside, data stay") from None


def _write(home: Path, record: _Record) -> None:
    # Made with mode 0600 from the beginning, and never half written.
    with tempfile.NamedTemporaryFile(dir=home, prefix=".services.", delete=False) as partial:
        partial.write(_JSON.dump_json(record, indent=1))
        partial.flush()
        os.fsync(partial.fileno())
    Path(partial.name).replace(home / "services.json")
