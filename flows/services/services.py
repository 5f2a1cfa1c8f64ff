"""The local services: the command, the environment and the health check of each.

process.py starts and ends their processes, local_stack.py all of them together.
"""

import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from flows.services.ports import HOST, free_port, is_free
from flows.services.process import Service, inherited_environment, owner_variable, shortened
from flows.services.store_keys import Pair, derive, for_rclone
from pipeline.errors import IgptError
from pipeline.hashing import sha256

_REGION = "us-east-1"
_OBJECT_STORE_BYTES = 10**9
_OF_DRIVERS = ("RAY_ADDRESS", "IGPT_KEYS", "IGPT_SIGNING_KEY", "IGPT_TRUSTED_KEYS")
_CHECK_SECONDS = 10
_RAY_CHECK_SECONDS = 60  # mostly for Ray's import; a dead head is reported after five
# On Linux, Ray replaces 127.0.0.1 by an external address and listens on every interface unless this is 0.
_RAY_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Requests the nodes, which takes both the head's control service and the node's own process.
_CHECK_RAY = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5).values()
sys.exit(not any(node.state == 0 for node in nodes))
"""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What a client needs to reach the services."""

    s3_url: str
    s3_access_key: str
    s3_secret_key: str = field(repr=False)
    keys_folder: Path
    """Has a file with the key of each step of a flow."""
    signing_key: Path
    """The file of the key that signs registered models."""
    trusted_keys: Path
    """The file of the keys whose signatures count."""
    prefect_url: str
    mlflow_url: str
    ray_address: str
    ray_token_path: Path
    """The file of the token that Ray's nodes and drivers share."""

    def environment(self) -> dict[str, str]:
        """The variables from which s3fs, boto3, Prefect, MLflow and Ray take addresses and credentials.

        To be set before Ray is imported: it reads them once, and without them it waits for a minute and fails.
        """
        return {
            "AWS_ACCESS_KEY_ID": self.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3_secret_key,
            "AWS_ENDPOINT_URL": self.s3_url,
            "AWS_DEFAULT_REGION": _REGION,
            "IGPT_KEYS": str(self.keys_folder),
            "IGPT_SIGNING_KEY": str(self.signing_key),
            "IGPT_TRUSTED_KEYS": str(self.trusted_keys),
            "MLFLOW_S3_ENDPOINT_URL": self.s3_url,
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.ray_token_path),
            **_RAY_ON_LOOPBACK,
        }

    @property
    def administrator(self) -> Pair:
        """The pair of this machine's user, who has all rights."""
        return Pair(access_key=self.s3_access_key, secret_key=self.s3_secret_key)


def services(home: Path, stack: Stack, ray_folder: Path) -> list[Service]:
    """The four services of a stack. Raises IgptError when a program is missing."""
    return [_s3(home, stack), _prefect(home, stack), _mlflow(home, stack), _ray(home, stack, ray_folder)]


def _s3(home: Path, stack: Stack) -> Service:
    command = (
        *(sys.executable, "-m", "flows.services.store_gate", _program("rclone"), str(home / "s3")),
        f"{HOST}:{_port(stack.s3_url)}",
    )
    # In the environment, because other users can read command lines.
    environment = for_rclone(stack.administrator)

    def check() -> str | None:
        # The command line should answer at once where no service is started.
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        request = AWSRequest(method="GET", url=f"{stack.s3_url}/")
        pair = derive(stack.administrator)["reader"]  # which a server of an earlier version refuses
        keys = Credentials(pair.access_key, pair.secret_key)
        S3SigV4Auth(keys, "s3", _REGION).add_auth(request)
        status, _ = _get(stack.s3_url, "/", dict(request.headers.items()))
        if status == http.HTTPStatus.FORBIDDEN:
            return "it refuses the recorded keys"
        return None if status == http.HTTPStatus.OK else f"it answers with HTTP status {status}"

    return _service(home, "s3", stack.s3_url, command, environment, check)


def _prefect(home: Path, stack: Stack) -> Service:
    url = stack.prefect_url
    port = _port(url)
    environment = {
        "PREFECT_HOME": str(home / "prefect"),
        # Relative to the working directory: a URL breaks where the folder's name has a question mark.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
        "PREFECT_UI_API_URL": f"{url}/api",
        # The default allows every web page in the browser to call the server.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{url},http://localhost:{port}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLI_COLORS": "false",
    }
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    check = partial(_check_health, url, "/api/health", b"true")
    return _service(home, "prefect", url, command, environment, check)


def _mlflow(home: Path, stack: Stack) -> Service:
    url = stack.mlflow_url
    port = _port(url)
    command = (
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", "sqlite:///mlflow.db",  # relative, as Prefect's
        "--default-artifact-root", "s3://mlflow", "--no-serve-artifacts",
        "--allowed-hosts", f"{HOST}:{port},localhost:{port}", "--uvicorn-opts=--no-access-log",
    )  # fmt: skip
    environment = {
        **{name: v for name, v in stack.environment().items() if name.startswith(("AWS_", "MLFLOW_S3_"))},
        **derive(stack.administrator)["mlflow"].environment(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # Its job runner is for evaluations of language models, and takes eight processes of 140 MiB each.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    check = partial(_check_health, url, "/health", b"OK")
    return _service(home, "mlflow", url, command, environment, check, depends_on=frozenset({"s3"}))


def _ray(home: Path, stack: Stack, ray_folder: Path) -> Service:
    address = stack.ray_address
    memory = min(_OBJECT_STORE_BYTES, psutil.virtual_memory().total // 4)
    # The system chooses all other ports, so that several clusters can run on one machine.
    command = [
        sys.executable, "-m", "pipeline.cluster.node", "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address", HOST, "--port", address.rpartition(":")[2], "--temp-dir", str(ray_folder / "r"),
        "--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0",
        "--include-dashboard", "false", "--num-cpus", str(max(2, os.cpu_count() or 1)),
        "--object-store-memory", str(memory),
        "--no-monitor",  # the autoscaler's monitor, whose metrics have a fixed port
    ]  # fmt: skip
    if importlib.util.find_spec("grpc"):  # only then Ray starts its client server, which takes no port 0
        command += ["--ray-client-server-port", str(free_port())]
    environment = {
        **{name: v for name, v in stack.environment().items() if name not in _OF_DRIVERS},
        **derive(stack.administrator)["reader"].environment(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_prestart_worker_first_driver": "0",  # workers without the runtime environment that all jobs have
        # There is no dashboard. Without an address, Ray Train would look for one for 20 s at the end of a training.
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # this machine is not preempted
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }

    def check() -> str | None:
        if is_free(int(address.rpartition(":")[2])):  # Ray's client would wait half a minute
            return "nothing listens on its port"
        # In its own process: Ray reads its variables when it is imported, and writes to the terminal.
        variables = {**inherited_environment(), **stack.environment()}
        try:
            result = subprocess.run(
                [sys.executable, "-c", _CHECK_RAY, address],
                env=variables,
                capture_output=True,
                text=True,
                timeout=_RAY_CHECK_SECONDS,
                check=False,
            )
            problem = "" if result.returncode == 0 else f"it has no node yet {result.stderr}"
        except subprocess.TimeoutExpired as error:
            problem = f"it does not answer {(error.stderr or b'').decode(errors='replace')}"
        if "Unauthenticated" in problem:
            return "it refuses the recorded token"
        return shortened(problem) or None

    dependencies = frozenset({"s3", "prefect", "mlflow"})
    return _service(home, "ray", address, tuple(command), environment, check, depends_on=dependencies)


def _service(
    home: Path,
    name: str,
    url: str,
    command: tuple[str, ...],
    environment: dict[str, str],
    check: Callable[[], str | None],
    depends_on: frozenset[str] = frozenset(),
) -> Service:
    def check_connection() -> str | None:
        try:
            return check()
        except (OSError, http.client.HTTPException) as error:
            return f"it does not answer ({shortened(str(error) or type(error).__name__)})"

    return Service(
        name=name,
        port=_port(url),
        url=url,
        command=command,
        environment={**environment, "DO_NOT_TRACK": "true", **owner_variable(home, name)},
        folder=home / name,
        log=home / "logs" / f"{name}.log",
        check=check_connection,
        depends_on=depends_on,
    )


def _check_health(url: str, path: str, expected: bytes) -> str | None:
    status, body = _get(url, path, {})
    return None if status == http.HTTPStatus.OK and body == expected else f"it answers with HTTP status {status}"


def _get(url: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    # Not urllib, which would use the environment's proxy.
    connection = http.client.HTTPConnection(HOST, _port(url), timeout=_CHECK_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _program(name: str) -> str:
    installed = Path(sys.executable).with_name(name)
    path = str(installed) if installed.exists() else shutil.which(name)
    if path is None:
        raise IgptError(f"the program {name} is not installed; install the project again with its dependencies")
    return path


def short_folder(home: Path) -> Path:
    """A folder outside `home` for Ray's sockets: a socket path is limited to 104 bytes, and Ray appends 70.

    Ray lets every user write to its own folder, `r` in this one, which no other user can enter.
    """
    name = f"igpt-{sha256(bytes(home))[:10]}"
    # Resolved, as the paths of open files are: on macOS /tmp and /var are links into /private.
    folder = Path(tempfile.gettempdir()).resolve() / name
    return folder if len(bytes(folder)) <= 31 else Path("/tmp").resolve() / name
