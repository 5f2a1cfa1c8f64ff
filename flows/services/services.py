"""The local services: the command, the environment and the readiness probe of each.

Their processes are in service_process.py, what a user asks for in local_stack.py.
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
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from flows.services.ports import HOST, free_port, is_free
from flows.services.process import Service, inherited_environment, mark, shortened
from pipeline.errors import IgptError
from pipeline.hashing import sha256

BUCKETS = ("raw", "datasets", "runs", "mlflow")
_REGION = "us-east-1"
_OBJECT_STORE_BYTES = 10**9
_PROBE_SECONDS = 10
_RAY_PROBE_SECONDS = 60  # Ray's import is most of it; that a head is dead is told after five
# On Linux, Ray replaces 127.0.0.1 by an outward address and listens on every interface unless this says 0.
_RAY_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Asks for the nodes, so that both the head's address table and the node's own process have to be there.
_ASK_RAY = """
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
    prefect_url: str
    mlflow_url: str
    ray_address: str
    ray_token: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables by which s3fs, boto3, Prefect, MLflow and Ray find the services and prove that they may.

        To be set before Ray is imported: it reads its variables once, and without them waits in vain for a minute.
        """
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
            **_RAY_ON_LOOPBACK,
        }


def services(home: Path, stack: Stack, ray_folder: Path) -> list[Service]:
    """The four services of a stack. Raises IgptError when a program is missing."""
    return [_s3(home, stack), _prefect(home, stack), _mlflow(home, stack), _ray(home, stack, ray_folder)]


def _s3(home: Path, stack: Stack) -> Service:
    # No VFS cache: with one, a PUT is acknowledged before it is in the folder, readers that meet an overwrite get the
    # old bytes or an error far more often, and every ranged GET hashes the whole object again.
    # Directory cache of 2 s: writes through S3 are visible at once whatever it is; what somebody puts into the folder
    # directly is hidden for that long (5 minutes by default). At 0 every request reads its whole directory: with 2,500
    # files in it, 6 GETs per second were left of 200.
    # XXH3: listing or opening an object hashes all of it for its ETag, unless the directory cache has it. That took
    # 0.1 s for 400 MB, MD5 0.65 s. No client takes its 16 digits for an MD5.
    # No checksum: otherwise every GET hashes what it reads from its own disk again, which was half of its cost.
    command = (
        _program("rclone"), "serve", "s3", str(home / "s3"), "--addr", f"{HOST}:{_port(stack.s3_url)}",
        "--vfs-cache-mode", "off", "--dir-cache-time", "2s", "--etag-hash", "XXH3", "--no-checksum", "--config", "",
    )  # fmt: skip
    # By environment, since a command line is public on the machine; CSV, hence the quotes.
    environment = {"RCLONE_AUTH_KEY": f'"{stack.s3_access_key},{stack.s3_secret_key}"'}

    def ask() -> str | None:
        request = AWSRequest(method="GET", url=f"{stack.s3_url}/")
        keys = Credentials(stack.s3_access_key, stack.s3_secret_key)
        S3SigV4Auth(keys, "s3", _REGION).add_auth(request)
        status, _ = _get(stack.s3_url, "/", dict(request.headers.items()))
        if status == http.HTTPStatus.FORBIDDEN:
            return "it refuses the recorded keys"
        return None if status == http.HTTPStatus.OK else f"it answers with HTTP status {status}"

    return _service(home, "s3", stack.s3_url, command, environment, ask)


def _prefect(home: Path, stack: Stack) -> Service:
    url = stack.prefect_url
    port = _port(url)
    environment = {
        "PREFECT_HOME": str(home / "prefect"),
        # Relative to the working directory: a URL breaks where the folder's name has a question mark.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
        "PREFECT_UI_API_URL": f"{url}/api",
        # The default lets every web page that the browser shows call the server.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{url},http://localhost:{port}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLI_COLORS": "false",
    }
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    ask = partial(_ask_health, url, "/api/health", b"true")
    return _service(home, "prefect", url, command, environment, ask)


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
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # Its job runner serves evaluations of language models, with eight processes of 140 MiB each.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    ask = partial(_ask_health, url, "/health", b"OK")
    return _service(home, "mlflow", url, command, environment, ask, told=frozenset({"s3"}))


def _ray(home: Path, stack: Stack, ray_folder: Path) -> Service:
    address = stack.ray_address
    memory = min(_OBJECT_STORE_BYTES, psutil.virtual_memory().total // 4)
    # Every other port is one that the system gives, so that clusters on one machine do not meet.
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address", HOST, "--port", address.rpartition(":")[2], "--temp-dir", str(ray_folder),
        "--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0",
        "--include-dashboard", "false", "--num-cpus", str(max(2, os.cpu_count() or 1)),
        "--object-store-memory", str(memory),
        "--no-monitor",  # it scales clusters of the cloud, and its metrics have a fixed port
    ]  # fmt: skip
    if importlib.util.find_spec("grpc"):  # only then is there a client server, which wants a port other than 0
        command += ["--ray-client-server-port", str(free_port())]
    environment = {
        **{name: value for name, value in stack.environment().items() if name != "RAY_ADDRESS"},
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # There is no dashboard. Ray Train would look for its address for twenty seconds when a training ends.
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }

    def ask() -> str | None:
        if is_free(int(address.rpartition(":")[2])):  # Ray's client would wait half a minute
            return "nothing listens on its port"
        # In a process of its own: Ray reads its variables when it is imported, and writes to the terminal.
        variables = {**inherited_environment(), **stack.environment()}
        try:
            asked = subprocess.run(
                [sys.executable, "-c", _ASK_RAY, address],
                env=variables,
                capture_output=True,
                text=True,
                timeout=_RAY_PROBE_SECONDS,
                check=False,
            )
            complaint = "" if asked.returncode == 0 else f"it has no node yet {asked.stderr}"
        except subprocess.TimeoutExpired as error:
            complaint = f"it does not answer {(error.stderr or b'').decode(errors='replace')}"
        if "Unauthenticated" in complaint:
            return "it refuses the recorded token"
        return shortened(complaint) or None

    return _service(home, "ray", address, tuple(command), environment, ask, told=frozenset({"s3", "prefect", "mlflow"}))


def _service(
    home: Path,
    name: str,
    url: str,
    command: tuple[str, ...],
    environment: dict[str, str],
    ask: Callable[[], str | None],
    told: frozenset[str] = frozenset(),
) -> Service:
    def ask_safely() -> str | None:
        try:
            return ask()
        except (OSError, http.client.HTTPException) as error:
            return f"it does not answer ({shortened(str(error) or type(error).__name__)})"

    return Service(
        name=name,
        port=_port(url),
        url=url,
        command=command,
        environment={**environment, "DO_NOT_TRACK": "true", **mark(home, name)},
        folder=home / name,
        log=home / "logs" / f"{name}.log",
        ask=ask_safely,
        told=told,
    )


def _ask_health(url: str, path: str, expected: bytes) -> str | None:
    status, body = _get(url, path, {})
    return None if status == http.HTTPStatus.OK and body == expected else f"it answers with HTTP status {status}"


def _get(url: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    # Not urllib: it would ask a proxy that the environment names.
    connection = http.client.HTTPConnection(HOST, _port(url), timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise IgptError(f"the program {name} is not installed; install the project again with its dependencies")
    return found


def short_folder(home: Path) -> Path:
    """A folder outside `home` for Ray's sockets: a socket's path must stay under 104 bytes, and Ray's adds 70."""
    name = f"igpt-{sha256(bytes(home))[:10]}"
    # Resolved, as the system tells the paths of open files: on macOS /tmp and /var are links into /private.
    folder = Path(tempfile.gettempdir()).resolve() / name
    return folder if len(bytes(folder)) <= 33 else Path("/tmp").resolve() / name
