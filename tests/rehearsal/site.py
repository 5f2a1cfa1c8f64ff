"""The hosts and services of the rehearsal: those of infra/compose.yaml, started, stopped, lost and asked."""

import io
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg2
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from flows.services import deployed_keys, secrets_file
from tests.rehearsal.webhook import Webhook
from tests.rigs import postgres
from tests.rigs.compose import HOME, Compose
from tests.rigs.hosts import Host, Network
from tests.rigs.postgres import PostgresData, PostgresServer
from tests.rigs.ray_nodes import QUICK_TO_GIVE_UP
from tests.rigs.s3_server import S3Server, serve

ROOT = Path(__file__).parents[2]
IMAGES = 1200
STEPS = 300
_PATIENCE = 400.0  # seconds, on a busy machine
_SOON_SECONDS = 25.0
_STOP_SECONDS = 20.0
# The names by which the services of compose.yaml call each other, and the labels of their hosts.
LABELS = {
    **{"s3": "s3", "postgres": "db", "mlflow": "mlf", "prefect-server": "prf", "ray-head": "head"},
    **{"ray-worker-1": "ray1", "ray-worker-2": "ray2", "prefect-worker": "work", "exporter": "exp"},
    **{"backup": "back", "clean": "clea", "prometheus": "prom"},
}
# Compose starts a container anew that has ended, unless it was stopped.
_UNLESS_STOPPED = 'while :; do "$@"; sleep 1; done'


class RehearsalError(Exception):
    """A check failed, or an event did not happen in time."""


def refresh_config() -> dict[str, Any]:
    """The config of the refresh: as small as possible, but long enough to lose nodes in it."""
    return {
        "dataset": {
            **{"raw": "s3://raw/digits", "dataset": "s3://datasets/digits", "resolution": 8, "colours": 16},
            **{"samples_per_shard": 8, "validation_fraction": 0.15, "test_fraction": 0.2},
        },
        "pretrain": {
            **{"runs": "s3://runs/digits", "preset": "tiny", "layers": 2, "width": 32, "steps": STEPS},
            **{"global_batch": 96, "warmup_steps": 20, "checkpoint_every": 50, "evaluate_every": 100},
            **{"sample_every": 150, "workers": 2, "min_workers": 1, "resize_seconds": 5, "placement": "SPREAD"},
            **{"window_shards": 1000, "experiment": "digits", "model_name": "digits"},
        },
        "probe": {"strengths": [0.01, 0.1]},
        "promotion": {"max_bits_per_pixel": 4.0},
    }


def deployments(scheduled: str | None, due: datetime) -> dict[str, Any]:
    """The file for `igpt deploy`: infra/prefect.yaml with small parameters; at most one is scheduled, at `due`."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
    config = refresh_config()
    dataset = config["dataset"]
    parameters = {
        **{"nightly": {"config": dataset}, "watch": {"config": dataset}, "weekly": {"config": config}},
        "candidate": {"config": {"dataset": dataset["dataset"], **config["probe"]}},
    }
    for entry in content["deployments"]:
        entry["parameters"] = {**entry["parameters"], **parameters[entry["name"]]}
        for schedule in entry.get("schedules", []):
            schedule["active"] = False
        if entry["name"] == scheduled:
            week = timedelta(weeks=1).total_seconds()
            entry["schedules"] = [{"slug": scheduled, "interval": week, "anchor_date": due.isoformat()}]
    return content


def digits(begin: int, end: int) -> dict[str, bytes]:
    """Handwritten digits as PNG files by key."""
    images = load_digits()
    files = {}
    for number in range(begin, end):
        buffer = io.BytesIO()
        Image.fromarray(np.rint(images.images[number] * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
        files[f"digits/{images.target[number]}/{number:04d}.png"] = buffer.getvalue()
    return files


def of_compose(service: str) -> str:
    """The name in compose.yaml of a service that may have several containers."""
    return re.sub(r"-\d$", "", service)


@dataclass(kw_only=True)
class Production:
    """The hosts and their services."""

    network: Network
    hosts: dict[str, Host]
    compose: Compose
    s3: S3Server
    webhook: Webhook
    keys: Path
    """The volume `keys`."""
    secrets: Mapping[str, str] = field(repr=False)
    """Those of infra/secrets/igpt.env, by name."""
    began: float = field(default_factory=time.monotonic)
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def tell(self, line: str) -> None:
        """Print a line with the time since the start."""
        print(f"{time.monotonic() - self.began:5.0f} s  {line}", flush=True)

    def log(self, service: str) -> Path:
        """What a service prints."""
        return self.hosts[service].folder / f"{service}.log"

    @property
    def deployment_file(self) -> Path:
        """The file that `igpt deploy` and the exporter read."""
        return self.hosts["prefect-worker"].folder / "prefect.yaml"

    @property
    def backups(self) -> Path:
        """The volume `backups`."""
        return self.hosts["backup"].folder / "backups"

    def environment(self, service: str) -> dict[str, str]:
        """The variables of a service, and what is this machine's: fewer processes, folders of a host's own."""
        installed = postgres.installation()
        programs = [str(Path(sys.executable).parent), f"{installed}/bin", os.environ["PATH"]]
        return {
            "PATH": os.pathsep.join(programs),  # with those of PostgreSQL, which the image has too
            **self.compose.service(of_compose(service)).environment,
            "RAY_USAGE_STATS_ENABLED": "0",
            **{"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
            **{"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"},
            **{"PREFECT_WORKER_PREFETCH_SECONDS": "1", **QUICK_TO_GIVE_UP},
            "GRPC_DNS_RESOLVER": "native",  # which knows /etc/hosts; its own asks a server, and here is none
            "PREFECT_HOME": str(self.hosts[service].folder),
        }

    def command(self, service: str) -> list[str]:
        """The command of a service, with an object store of a size of which four fit into one machine."""
        words = self.compose.service(of_compose(service)).command
        words = [word.replace("/etc/igpt/prefect.yaml", str(self.deployment_file)) for word in words]
        words = [re.sub(r"--object-store-memory=\d+", "--object-store-memory=100000000", word) for word in words]
        if service == "backup":
            words = [
                word.replace("/backups", str(self.backups)).replace("--port", "--every=2 --port") for word in words
            ]
        return self.contained(service, words)

    def contained(self, service: str, command: list[str], job: str | None = None) -> list[str]:
        """The command as in a container: it sees no processes but its own, its host's /tmp/ray, and its own keys.

        By the first two a Ray driver finds the node on its machine. A job of another name has keys of its own.
        """
        host = self.hosts[service]
        mounts = {str(host.folder / "ray"): "/tmp/ray"}
        for target, keys in self.compose.service(of_compose(job or service)).keys.items():
            mounts[str(self.keys / keys)] = target.replace(HOME, str(host.folder))  # HOME of its processes
        for path in (path for pair in mounts.items() for path in pair):
            Path(path).mkdir(parents=True, exist_ok=True)
        own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        binds = [f"mount --bind {source} {target}" for source, target in mounts.items()]
        script = " && ".join([*binds, f"mount -t tmpfs none {self.keys}", 'exec "$@"'])
        return [*own, "sh", "-c", script, "sh", *command]

    def start(self, service: str, *options: str, variables: Mapping[str, str] | None = None) -> None:
        """Start a service on its host, with more options and variables; when it ends it is started anew."""
        command = ["sh", "-c", _UNLESS_STOPPED, "sh", *self.command(service), *options]
        environment = {**self.environment(service), **(variables or {})}
        self._started[service] = self.hosts[service].start(command, environment, self.log(service))

    def stop(self, service: str) -> None:
        """End a service as `docker compose stop` does: SIGTERM to its first process, later SIGKILL to what is left."""
        keeper = psutil.Process(self._started.pop(service).pid)
        containers = keeper.children()
        keeper.kill()
        for container in containers:
            with suppress(psutil.Error):
                for process in container.children():
                    process.terminate()
        psutil.wait_procs(containers, timeout=_STOP_SECONDS)
        self.hosts[service].kill()

    def run(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end where a service runs."""
        return self.hosts[service].run(self.contained(service, command), self.environment(service), seconds=240)

    def run_job(self, job: str, service: str) -> None:
        """Run a job of compose.yaml to its end, on the host of a service. Raises RehearsalError with what it says."""
        described = self.compose.service(job)
        command = self.contained(service, described.command, job)
        done = self.hosts[service].run(command, described.environment, seconds=240)
        if done.returncode != 0:
            raise RehearsalError(f"{job}: {done.stdout}{done.stderr}")

    def run_beside(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a service's container, like `docker compose exec`: a Ray driver needs that."""
        (container,) = psutil.Process(self._started[service].pid).children()
        (first,) = container.children()
        entered = ["nsenter", f"--target={first.pid}", "--mount", "--pid", *command]
        return self.hosts[service].run(entered, self.environment(service), seconds=240)

    def must_run(self, service: str, command: list[str]) -> str:
        """Like `run`, but raise RehearsalError with what the command says when it fails; return its output."""
        done = self.run(service, command)
        if done.returncode != 0:
            raise RehearsalError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def igpt(self, *arguments: str) -> str:
        """Run a command where the driver runs. Raises RehearsalError with what it says when it fails."""
        return self.must_run("prefect-worker", ["igpt", *arguments])

    def deploy(self, scheduled: str | None = None) -> str:
        """Register the deployments, with at most one that is scheduled, in some seconds."""
        seconds = _SOON_SECONDS
        while True:
            soon = datetime.now(UTC) + timedelta(seconds=seconds)
            self.deployment_file.write_text(yaml.safe_dump(deployments(scheduled, soon)))
            said = self.igpt("deploy", "--file", str(self.deployment_file))
            if scheduled is None or datetime.now(UTC) < soon:  # otherwise the next run is due in a week
                return said
            seconds *= 2

    def wait(self, what: str, condition: Callable[[], Any], *services: str, seconds: float = _PATIENCE) -> Any:
        """Wait until a condition is true, and return it. Raises RehearsalError with the logs of the services."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {name}\n{self.log(name).read_text(errors='replace')[-4000:]}" for name in services
                )
                raise RehearsalError(f"after {seconds:.0f} s: not {what}\n{logs}")
            time.sleep(0.2)
        return value

    def answers(self, service: str, path: str) -> bool:
        """Whether a server answers its health check."""
        try:
            with urllib.request.urlopen(f"http://{self.hosts[service].address}{path}", timeout=3):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def prefect(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request to Prefect's API, with the password; returns the response."""
        password = b64encode(f"igpt:{self.secrets['PREFECT_PASSWORD']}".encode()).decode()
        request = urllib.request.Request(
            f"http://{self.hosts['prefect-server'].address}:4200/api/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {password}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The runs of a deployment that were started and not cancelled, oldest first."""
        wanted = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs: list[dict[str, Any]] = self.prefect("flow_runs/filter", wanted)
        return [run for run in runs if run["state_type"] not in ("CANCELLED", "SCHEDULED", "CANCELLING")]

    def logged(self, text: str) -> list[str]:
        """The lines of all flow runs on Prefect's pages that begin with a text."""
        lines: list[str] = []
        while True:
            page = self.prefect("logs/filter", {"limit": 200, "offset": len(lines), "sort": "TIMESTAMP_ASC"})
            lines += [entry["message"] for entry in page]
            if len(page) < 200:
                return [line for line in lines if line.startswith(text)]

    def progress(self) -> list[str]:
        """What the progress of runs says on Prefect's page, without Markdown's escapes."""
        shown = self.prefect("artifacts/filter", {"artifacts": {"key": {"any_": ["progress"]}}})
        return [artifact["description"].replace("\\", "") for artifact in shown]

    def files(self, folder: str, pattern: str) -> int:
        """The number of objects below a bucket's folder whose last names match a pattern."""
        return len(self.paths(folder, pattern))

    def paths(self, folder: str, pattern: str) -> list[Path]:
        """The files of these objects; others may be removed meanwhile."""
        below = os.walk(self.s3.folder / folder)  # which passes over folders that are gone, as rglob does not
        paths = [Path(parent) / name for parent, _, names in below for name in names]
        return [path for path in paths if path.match(pattern)]

    def shown_secrets(self) -> set[tuple[str, str]]:
        """The secrets in the variables or command lines of processes: the name of each, and whose process shows it.

        S3 and PostgreSQL are stand-ins, whose own variables are not those of compose.yaml.
        """
        hidden = {secret: value for secret, value in self.secrets.items() if secret != "AWS_ACCESS_KEY_ID"}
        shown = set()
        for name, host in self.hosts.items():
            for pid in host.processes() if name not in ("s3", "postgres") else ():
                with suppress(psutil.Error):  # it has ended
                    process = psutil.Process(pid)
                    command = " ".join(process.cmdline())
                    text = f"{command} {process.environ()}"
                    shown |= {(secret, f"{name}: {command}") for secret, value in hidden.items() if value in text}
        return shown

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Put raw images into their bucket."""
        for key, content in files.items():
            path = self.s3.bucket("raw") / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def nodes(self) -> set[str]:
        """The hosts with a live Ray node, according to the head; none while it does not answer."""
        code = (
            "from ray._raylet import GcsClient\n"
            "nodes = GcsClient(address='ray-head:6379').get_all_node_info(timeout=10).values()\n"
            "print(*(node.node_manager_address for node in nodes if node.state == 0))"
        )
        addresses = self.run("ray-head", [sys.executable, "-c", code]).stdout.split()
        return {name for name, host in self.hosts.items() if host.address in addresses}

    def lose(self, service: str) -> None:
        """Disconnect a host and kill what runs on it."""
        self.hosts[service].remove()
        self._started.pop(service, None)

    def bring_back(self, service: str) -> None:
        """Connect the host again and start a new node on it."""
        self.hosts[service].plug()
        self.start(service)
        self.wait(f"a Ray node on {service}", lambda: service in self.nodes(), service)

    def start_worker(self) -> None:
        """Start Prefect's worker, and wait until the Ray node beside it is there, which drivers need."""
        self.start("prefect-worker")
        self.wait("a Ray node beside the worker", lambda: "prefect-worker" in self.nodes(), "prefect-worker")


def create_databases(server: PostgresServer, passwords: Mapping[str, str]) -> None:
    """Create a role and a database per service, like compose.yaml's script for PostgreSQL."""
    session = psycopg2.connect(
        host=server.address, port=server.port, user="postgres", password=server.password, dbname="postgres"
    )
    session.autocommit = True
    try:
        cursor = session.cursor()
        for role, secret in (("mlflow", "MLFLOW_DB_PASSWORD"), ("prefect", "PREFECT_DB_PASSWORD")):
            cursor.execute(f"CREATE ROLE {role} LOGIN PASSWORD %s", [passwords[secret]])
        for database, role in (("mlflow", "mlflow"), ("mlflow_auth", "mlflow"), ("prefect", "prefect")):
            cursor.execute(f"CREATE DATABASE {database} OWNER {role}")
    finally:
        session.close()


@contextmanager
def production() -> Iterator[Production]:
    """All services, once they answer; removed when the context ends."""
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        hosts = {name: network.add(label) for name, label in LABELS.items()}
        network.name(hosts)
        data = stack.enter_context(PostgresData())
        s3 = stack.enter_context(serve(hosts["s3"].folder / "data", hosts["s3"].address, 8333, hosts["s3"].start))
        of_store = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        site = Production(
            network=network,
            hosts=hosts,
            compose=Compose({"RAY_WORKER_CPUS": "1"}),
            s3=s3,
            webhook=stack.enter_context(Webhook(network.address)),
            keys=network.folder / "keys",
            secrets={
                **{name: secrets.token_hex(24) for name in secrets_file.NAMES},
                **of_store,
                "POSTGRES_PASSWORD": data.password,
            },
        )
        deployed_keys.write_all(site.keys, site.secrets, (ROOT / "infra" / "mlflow-auth.ini").read_text())
        database = stack.enter_context(data.serve(hosts["postgres"].address, 5432, hosts["postgres"].start))
        create_databases(database, site.secrets)
        files = digits(0, IMAGES)
        site.upload({**files, "digits/0/cut.png": next(iter(files.values()))[:60]})
        site.run_job("buckets", "prefect-worker")
        start_services(site)
        site.tell("S3, PostgreSQL, MLflow, Prefect, a Ray head and two Ray workers answer, each at its own address")
        yield site


SERVERS = ("mlflow", "prefect-server")
NODES = ("ray-head", "ray-worker-1", "ray-worker-2")


def start_services(site: Production, variables: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Migrate the databases, start the servers and the nodes in the order of compose.yaml, wait until they answer.

    Some of the nodes may get more variables, by their name.
    """
    for job in ("migrate-mlflow", "migrate-prefect"):
        site.run_job(job, "mlflow")
    for name in (*SERVERS, "ray-head"):
        site.start(name)
    with ThreadPoolExecutor() as pool:
        for name in NODES[1:]:
            pool.submit(site.start, name, variables=(variables or {}).get(name))
    site.wait("MLflow", lambda: site.answers("mlflow", ":5000/health"), "mlflow")
    site.wait("Prefect", lambda: site.answers("prefect-server", ":4200/api/health"), "prefect-server")
    site.wait("three Ray nodes", lambda: set(NODES) <= site.nodes(), *NODES)
