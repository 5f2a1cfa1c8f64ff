"""The services of the production layout on one machine, without containers: S3, Prefect, MLflow and Ray on loopback.

Everything lies in one folder: data, logs, and services.json with ports, credentials and process ids (mode 0600).
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows.services import (
    HOST,
    RecordedProcess,
    Service,
    end,
    free_ports,
    http_answers,
    is_free,
    program,
    start,
    wait_until_answering,
)
from pipeline.errors import IgptError

BUCKETS = ("raw", "datasets", "runs", "mlflow")
_REGION = "us-east-1"
_OBJECT_STORE_BYTES = 500_000_000
# Ended in this order, started in the reverse one: S3 outlasts those that write to it.
_NAMES = ("ray", "prefect", "mlflow", "s3")

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What a client needs to reach the services."""

    s3_url: str
    s3_access_key: str
    s3_secret_key: str = field(repr=False)
    prefect_url: str
    mlflow_url: str
    ray_address: str
    ray_token: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables by which s3fs, boto3, Prefect, MLflow and Ray find the services."""
        return {
            "AWS_ACCESS_KEY_ID": self.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3_secret_key,
            "AWS_ENDPOINT_URL": self.s3_url,
            "AWS_DEFAULT_REGION": _REGION,
            "MLFLOW_S3_ENDPOINT_URL": self.s3_url,
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.ray_token,
        }


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """How one service is."""

    name: str
    url: str
    pid: int | None
    answers: bool
    detail: str


@dataclass(kw_only=True)
class _Record:
    """services.json."""

    ports: dict[str, int]
    access_key: str
    secret_key: str
    ray_token: str
    processes: dict[str, RecordedProcess]

    def stack(self) -> Stack:
        return Stack(
            s3_url=f"http://{HOST}:{self.ports['s3']}",
            s3_access_key=self.access_key,
            s3_secret_key=self.secret_key,
            prefect_url=f"http://{HOST}:{self.ports['prefect']}",
            mlflow_url=f"http://{HOST}:{self.ports['mlflow']}",
            ray_address=f"{HOST}:{self.ports['ray']}",
            ray_token=self.ray_token,
        )


def up(home: Path, *, report: Report = lambda line: None) -> Stack:
    """Start what does not answer yet, and return how to reach the services.

    A service keeps its port from time to time; where somebody else took it meanwhile, it moves and `report` hears so.
    Raises IgptError when a service does not start; what this call started is ended again.
    """
    home = home.absolute()
    with _locked(home):
        record = _read(home) or _new_record()
        running = {name for name in _NAMES if _is_running(home, record, name)}
        for name in reversed(_NAMES):
            if name in running:
                continue
            _end(home, record, name)
            if not is_free(record.ports[name]):
                (port,) = free_ports(1)
                report(f"{name}: port {record.ports[name]} is taken by another program, using {port}")
                record.ports[name] = port
                if name == "s3":  # the others were told its address when they were started
                    for other in running:
                        _end(home, record, other)
                    running.clear()
        started: list[str] = []
        try:
            _start_missing(home, record, running, started, report)
        except BaseException:
            for name in started:
                _end(home, record, name)
            _write(home, record)
            raise
        return record.stack()


def _start_missing(home: Path, record: _Record, running: set[str], started: list[str], report: Report) -> None:
    for bucket in BUCKETS:
        (home / "s3" / bucket).mkdir(parents=True, exist_ok=True)
    services = [_service(home, record, name) for name in reversed(_NAMES) if name not in running]
    for service in services:
        record.processes[service.name] = start(service)
        started.append(service.name)
        _write(home, record)
    for service in services:
        wait_until_answering(service, record.processes[service.name])
        report(f"{service.name} answers at {service.url}")


def load(home: Path) -> Stack | None:
    """How to reach the services of a folder, as recorded, without asking them; None where none were started."""
    record = _read(home.absolute())
    return record.stack() if record and record.processes else None


def status(home: Path) -> list[ServiceStatus]:
    """Ask every recorded service whether it answers."""
    home = home.absolute()
    record = _read(home)
    if record is None:
        return []
    found = []
    for name in reversed(_NAMES):
        recorded = record.processes.get(name)
        process = recorded.find() if recorded else None
        service = _service(home, record, name)
        answers = process is not None and service.answers()
        if process is not None:
            detail = "" if answers else f"process {process.pid} runs but does not answer; see {service.log}"
        elif recorded is None:
            detail = "not started; `igpt up` starts it"
        else:
            taken = "" if is_free(record.ports[name]) else ", and another program has its port"
            detail = f"its process {recorded.pid} is gone{taken}; `igpt up` starts it again"
        pid = process.pid if process else None
        found.append(ServiceStatus(name=name, url=service.url, pid=pid, answers=answers, detail=detail))
    return found


def down(home: Path, *, report: Report = lambda line: None) -> None:
    """End the recorded processes and what they started, nothing else. Data, ports and credentials stay."""
    home = home.absolute()
    if _read(home) is None:
        report("no services were started here")
        return
    with _locked(home):
        record = _read(home)
        assert record is not None
        for name in _NAMES:
            if name in record.processes:
                _end(home, record, name)
                report(f"{name} ended")
        _write(home, record)


def process_ids(home: Path) -> list[int]:
    """The recorded processes that are alive."""
    record = _read(home.absolute())
    processes = record.processes.values() if record else ()
    return [recorded.pid for recorded in processes if recorded.find() is not None]


def _new_record() -> _Record:
    ports = free_ports(len(_NAMES))
    return _Record(
        ports=dict(zip(_NAMES, ports, strict=True)),
        access_key=f"igpt{secrets.token_hex(8)}",
        secret_key=secrets.token_urlsafe(32),
        ray_token=secrets.token_hex(32),
        processes={},
    )


def _is_running(home: Path, record: _Record, name: str) -> bool:
    recorded = record.processes.get(name)
    return recorded is not None and recorded.find() is not None and _service(home, record, name).answers()


def _end(home: Path, record: _Record, name: str) -> None:
    recorded = record.processes.pop(name, None)
    if recorded is None:
        return
    if name != "ray":
        end(recorded)
        return
    # Ray's processes leave their parent; each has the session's folder in its environment or command line.
    folder = str(_ray_folder(home))
    end(recorded, also=lambda process: _belongs_to(process, folder))
    shutil.rmtree(folder, ignore_errors=True)


def _belongs_to(process: psutil.Process, folder: str) -> bool:
    if any(f"{folder}/" in part or part.endswith(folder) for part in process.cmdline()):
        return True
    return process.environ().get("IGPT_RAY_FOLDER") == folder


def _ray_folder(home: Path) -> Path:
    # Short, because a socket's path below it must stay under 108 bytes.
    return Path(tempfile.gettempdir()) / f"igpt-{hashlib.sha256(str(home).encode()).hexdigest()[:10]}"


def _service(home: Path, record: _Record, name: str) -> Service:
    stack = record.stack()
    log = home / "logs" / f"{name}.log"
    maker = {"s3": _s3, "prefect": _prefect, "mlflow": _mlflow, "ray": _ray}[name]
    return maker(home, record, stack, log)


def _s3(home: Path, record: _Record, stack: Stack, log: Path) -> Service:
    def answers() -> bool:
        import botocore.session  # noqa: PLC0415 (a third of a second to import)
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        client = botocore.session.get_session().create_client(
            "s3",
            region_name=_REGION,
            endpoint_url=stack.s3_url,
            aws_access_key_id=record.access_key,
            aws_secret_access_key=record.secret_key,
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )
        try:
            client.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    address = f"{HOST}:{record.ports['s3']}"
    # The directory cache would hide for a while what a data engineer puts into the folder directly.
    command = [program("rclone"), "serve", "s3", "--addr", address, "--dir-cache-time", "1s", str(home / "s3")]
    keys = f'"{record.access_key},{record.secret_key}"'
    environment = {"RCLONE_AUTH_KEY": keys, "RCLONE_CONFIG": str(home / "s3.conf")}
    return Service(name="s3", command=command, environment=environment, url=stack.s3_url, answers=answers, log=log)


def _prefect(home: Path, record: _Record, stack: Stack, log: Path) -> Service:
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    port = str(record.ports["prefect"])
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_API_URL": f"{stack.prefect_url}/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [program("prefect"), "server", "start", "--host", HOST, "--port", port]
    url = stack.prefect_url
    return Service(
        name="prefect",
        command=command,
        environment=environment,
        url=url,
        answers=lambda: http_answers(f"{url}/api/health"),
        log=log,
    )


def _mlflow(home: Path, record: _Record, stack: Stack, log: Path) -> Service:
    folder = home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    port = record.ports["mlflow"]
    command = [
        *(program("mlflow"), "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--default-artifact-root", "s3://mlflow", "--no-serve-artifacts"),
        *("--allowed-hosts", f"{HOST}:{port},localhost:{port}"),
    ]
    environment = {name: v for name, v in stack.environment().items() if name.startswith(("AWS_", "MLFLOW_S3"))}
    environment |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        # Its job runner serves evaluations of language models, with seven processes of 170 MiB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    url = stack.mlflow_url
    return Service(
        name="mlflow",
        command=command,
        environment=environment,
        url=url,
        answers=lambda: http_answers(f"{url}/health"),
        log=log,
    )


def _ray(home: Path, record: _Record, stack: Stack, log: Path) -> Service:
    folder = _ray_folder(home)
    environment = {
        **{name: v for name, v in stack.environment().items() if name != "RAY_ADDRESS"},
        "IGPT_RAY_FOLDER": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }

    def command() -> list[str]:
        names = ("node-manager", "object-manager", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
        ports = free_ports(len(names) + 1)
        extra = [part for name, port in zip(names, ports, strict=False) for part in (f"--{name}-port", str(port))]
        return [
            *(program("ray"), "start", "--head", "--block", "--node-ip-address", HOST),
            *("--port", str(record.ports["ray"]), "--temp-dir", str(folder), "--disable-usage-stats"),
            *("--include-dashboard", "false", "--dashboard-port", str(ports[-1]), *extra),
            *("--num-cpus", str(max(2, os.cpu_count() or 2)), "--object-store-memory", str(_OBJECT_STORE_BYTES)),
        ]

    def answers() -> bool:
        # Asked in a process of its own, with the token in its environment: Ray's clients are one to a process.
        asked = subprocess.run(
            [program("ray"), "health-check", "--address", stack.ray_address],
            env={**os.environ, **stack.environment()},
            capture_output=True,
            check=False,
        )
        return asked.returncode == 0

    url = stack.ray_address
    return Service(name="ray", command=command(), environment=environment, url=url, answers=answers, log=log)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the folder, so that two `up` at a time do not start everything twice."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IgptError(f"another igpt is starting or ending the services in {home}; wait for it") from None
        yield


def _read(home: Path) -> _Record | None:
    path = home / "services.json"
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        processes = {name: RecordedProcess(**value) for name, value in fields.pop("processes").items()}
        return _Record(**fields, processes=processes)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IgptError(
            f"{path} is damaged; end its services by hand, remove the file, and run `igpt up` again"
        ) from None


def _write(home: Path, record: _Record) -> None:
    partial = home / ".services.json.partial"
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(asdict(record), indent=1))
    partial.replace(home / "services.json")
