"""MLflow's and Prefect's databases go from earlier releases to the locked ones with the jobs of compose.yaml.

An earlier release, in an environment of its own from the registry of packages, makes a database with content on a real
PostgreSQL; the jobs run on it, twice, and the servers of compose.yaml show the content.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from packaging.version import Version

from flows.services import deployed_keys, secrets_file
from flows.services.ports import HOST, free_port
from flows.services.store_keys import write
from tests.compatibility.earlier import read_json
from tests.rigs.compose import Compose
from tests.rigs.environments import ROOT, without_us
from tests.rigs.postgres import PostgresData, PostgresServer, installation
from tests.rigs.s3_server import launch_here

# The release before the locked one, and the last one whose schema is another: change them with the lock. The packages
# are those that carry the server's code; what they need is taken from the lock, from which old releases differ little.
EARLIER = {"mlflow": ("3.17.1", "3.16.1"), "prefect": ("3.8.7", "3.8.6")}
PACKAGES = {"mlflow": ("mlflow", "mlflow-skinny", "mlflow-tracing"), "prefect": ("prefect",)}
PASSWORD = "a-password-of-tests"
COMPOSE = Compose()
MLFLOW_CONTENT = """
from mlflow import MlflowClient
client = MlflowClient()
experiment = client.create_experiment("earlier", artifact_location="s3://mlflow/earlier")
run = client.create_run(experiment, run_name="trained", tags={"igpt.run": "s3://runs/one"})
client.log_param(run.info.run_id, "layers", 2)
for step in range(3):
    client.log_metric(run.info.run_id, "loss", 3 - step, step=step)
client.set_terminated(run.info.run_id)
client.create_registered_model("igpt")
version = client.create_model_version("igpt", "s3://mlflow/earlier/model", run_id=run.info.run_id, tags={"kept": "yes"})
client.set_registered_model_alias("igpt", "champion", version.version)
"""


def earlier_release(name: str, version: str, folder: Path) -> Path:
    """An environment with an earlier release of a server; returns its interpreter."""
    python = without_us(folder) / "python"
    wanted = [f"{package}=={version}" for package in PACKAGES[name]]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python), "install"]
    subprocess.run([*pip, "--no-deps", "--only-binary", ":all:", "--ignore-installed", *wanted], check=True)
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    shown = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert shown == version
    return python


def deployed(folder: Path, server: PostgresServer) -> Path:
    """The files of keys and passwords, with the password of a server's user for all databases."""
    secrets = {name: server.password if "_DB_" in name else PASSWORD for name in secrets_file.NAMES}
    deployed_keys.write_all(folder, secrets, (ROOT / "infra" / "mlflow-auth.ini").read_text())
    return folder


def schema(server: PostgresServer, database: str) -> list[tuple[Any, ...]]:
    """The tables, columns and indexes of a database, and the revisions that it has."""
    session = psycopg2.connect(
        host=server.address, port=server.port, user="postgres", password=server.password, dbname=database
    )
    try:
        cursor = session.cursor()
        rows: list[tuple[Any, ...]] = []
        cursor.execute(
            "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY 1, 2"
        )
        rows += cursor.fetchall()
        cursor.execute("SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2")
        rows += cursor.fetchall()
        for table in sorted({row[0] for row in rows if row[0].startswith("alembic_version")}):
            cursor.execute(f"SELECT '{table}', version_num FROM {table}")
            rows += cursor.fetchall()
        return rows
    finally:
        session.close()


def migrate(command: list[str], environment: Mapping[str, str], folder: Path) -> None:
    """Run a job with this environment's programs."""
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": str(folder), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def request(url: str, user: str, body: Mapping[str, Any] | None = None) -> Any:
    """The answer of a server to a GET, or to a POST of a body, by a user with a password."""
    headers = {
        "Authorization": f"Basic {base64.b64encode(user.encode()).decode()}",
        "Content-Type": "application/json",
    }
    asked = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.loads(answer.read())


@contextmanager
def running(command: list[str], environment: Mapping[str, str], url: str, folder: Path) -> Iterator[Path]:
    """A server, from its first answer on; yields its log."""
    log = folder / "server.log"
    process = launch_here(command, {"PATH": f"{Path(command[0]).parent}:{os.defpath}", **environment}, log)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.3)
        yield log
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.long
@pytest.mark.parametrize("name", EARLIER)
def test_the_earlier_releases_are_those_before_the_lock(name: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", name]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (listed,) = re.findall(r"^Available versions: (.*)$", done.stdout, re.MULTILINE)
    locked = Version(metadata.version(name))
    before = max(version for version in map(Version, listed.split(", ")) if version < locked)
    assert str(before) == EARLIER[name][0], "change EARLIER with the lock"


@pytest.mark.long
@pytest.mark.needs("postgres")
@pytest.mark.parametrize("release", EARLIER["mlflow"])
def test_mlflow_keeps_runs_versions_and_users(release: str, postgres: PostgresServer, tmp_path: Path) -> None:
    python = earlier_release("mlflow", release, tmp_path / "environment")
    suffix = release.replace(".", "_")
    databases = [f"mlflow_{suffix}", f"mlflow_auth_{suffix}"]
    for database in databases:
        postgres.create_database(database)
    keys = deployed(tmp_path / "keys", postgres)
    reached = {"PGHOST": postgres.address, "PGPORT": str(postgres.port), "PGUSER": "postgres"}

    def named(text: str) -> str:
        for database in databases:
            text = re.sub(rf"///{database.removesuffix('_' + suffix)}\b(?!_)", f"///{database}", text)
        return text

    users = keys / "mlflow" / "mlflow-auth.ini"
    write(users, named(users.read_text()))
    port = free_port()
    service = COMPOSE.service("mlflow").reading(keys)
    environment = {
        **{key: named(value) for key, value in service.environment.items()},
        **reached,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    options = {"--host=0.0.0.0": f"--host={HOST}", "--workers=2": "--workers=1"}
    words = [options.get(word, word).replace(":5000", f":{port}") for word in service.command]
    words = [f"--port={port}" if word == "--port=5000" else word for word in words]
    shell, words = words[: words.index("mlflow")], words[words.index("mlflow") + 1 :]
    url = f"http://{HOST}:{port}"
    client = {
        "MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_USERNAME": "igpt", "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        "PATH": os.defpath, "HOME": str(tmp_path),
    }  # fmt: skip
    with running([*shell, str(python), "-m", "mlflow", *words], environment, f"{url}/health", tmp_path):
        made = [str(python), "-c", MLFLOW_CONTENT]
        done = subprocess.run(made, env=client, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        reader = {"username": "reader", "password": f"{PASSWORD}-of-reader"}
        request(f"{url}/api/2.0/mlflow/users/create", f"igpt:{PASSWORD}", reader)
    before = [schema(postgres, database) for database in databases]

    migration = COMPOSE.service("migrate-mlflow").reading(keys)
    job, reached = [named(word) for word in migration.command], {**migration.environment, **reached}
    migrate(job, reached, tmp_path)
    after = [schema(postgres, database) for database in databases]
    assert (after != before) == (release == EARLIER["mlflow"][1])
    migrate(job, reached, tmp_path)
    assert [schema(postgres, database) for database in databases] == after
    with running([*shell, sys.executable, "-m", "mlflow", *words], environment, f"{url}/health", tmp_path):
        assert [schema(postgres, database) for database in databases] == after, "the server migrated"
        shown = request(f"{url}/api/2.0/mlflow/registered-models/alias?name=igpt&alias=champion", f"igpt:{PASSWORD}")
        version = shown["model_version"]
        assert (version["version"], version["tags"]) == ("1", [{"key": "kept", "value": "yes"}])
        run = request(f"{url}/api/2.0/mlflow/runs/get?run_id={version['run_id']}", f"reader:{PASSWORD}-of-reader")
        assert run["run"]["info"]["status"] == "FINISHED"
        assert run["run"]["data"]["params"] == [{"key": "layers", "value": "2"}]
        history = request(
            f"{url}/api/2.0/mlflow/metrics/get-history?run_id={version['run_id']}&metric_key=loss", f"igpt:{PASSWORD}"
        )
        assert [(point["step"], point["value"]) for point in history["metrics"]] == [(0, 3.0), (1, 2.0), (2, 1.0)]


@pytest.mark.long
@pytest.mark.needs("postgres")
@pytest.mark.parametrize("release", EARLIER["prefect"])
def test_prefect_keeps_deployments_runs_and_variables(release: str, postgres: PostgresServer, tmp_path: Path) -> None:
    python = earlier_release("prefect", release, tmp_path / "environment")
    database = f"prefect_{release.replace('.', '_')}"
    postgres.create_database(database)
    port, service = free_port(), COMPOSE.service("prefect-server").reading(deployed(tmp_path / "keys", postgres))
    environment = {
        **service.environment,
        "PREFECT_SERVER_DATABASE_HOST": postgres.address,
        "PREFECT_SERVER_DATABASE_PORT": str(postgres.port),
        "PREFECT_SERVER_DATABASE_USER": "postgres",
        "PREFECT_SERVER_DATABASE_NAME": database,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_UI_STATIC_DIRECTORY": str(tmp_path / "ui"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    options = {"--host=0.0.0.0": f"--host={HOST}", "--port=4200": f"--port={port}"}
    words = [options.get(word, word) for word in service.command[1:]]
    api, user = f"http://{HOST}:{port}/api", f"igpt:{PASSWORD}"
    stored = read_json("deployments/nightly.json")
    migrating = {**environment, "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "true"}  # to make its own database
    with running([str(python), "-m", "prefect", *words], migrating, f"{api}/health", tmp_path):
        flow = request(f"{api}/flows/", user, {"name": stored["flow"]})["id"]
        fields = {name: stored[name] for name in ("name", "entrypoint", "parameters", "parameter_openapi_schema")}
        deployment = request(f"{api}/deployments/", user, {"flow_id": flow, **fields})["id"]
        run = {"flow_id": flow, "deployment_id": deployment, "state": {"type": "COMPLETED"}, "name": "kept"}
        request(f"{api}/flow_runs/", user, run)
        request(f"{api}/variables/", user, {"name": "kept", "value": {"n": 1}})
    before = schema(postgres, database)
    job = COMPOSE.service("migrate-prefect").command
    migrate(job, environment, tmp_path)
    after = schema(postgres, database)
    assert (after != before) == (release == EARLIER["prefect"][1])
    migrate(job, environment, tmp_path)
    assert schema(postgres, database) == after
    with running([sys.executable, "-m", "prefect", *words], environment, f"{api}/health", tmp_path):
        assert schema(postgres, database) == after, "the server migrated"
        shown = request(f"{api}/deployments/name/{stored['flow']}/{stored['name']}", user)
        assert (shown["id"], shown["parameters"]) == (deployment, stored["parameters"])
        (found,) = request(f"{api}/flow_runs/filter", user, {"deployments": {"id": {"any_": [deployment]}}})
        assert (found["name"], found["state_type"]) == ("kept", "COMPLETED")
        assert request(f"{api}/variables/name/kept", user)["value"] == {"n": 1}


def commands(section: str, service: str) -> list[list[str]]:
    """What a section of UPGRADE.md runs in the container of a service, in order."""
    text = (ROOT / "infra" / "UPGRADE.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    line = rf"`docker compose exec (?:-T )?{service} ([^`<>]+?)(?: [<>] before\.sql)?`"
    return [command.split() for command in re.findall(line, " ".join(text.split()))]


@pytest.mark.long
@pytest.mark.needs("postgres")
def test_the_steps_for_one_host_in_order_and_back(tmp_path: Path) -> None:
    """As UPGRADE.md has them, from a release of Prefect with another schema; without containers."""
    python = earlier_release("prefect", EARLIER["prefect"][1], tmp_path / "environment")
    installed = installation()
    assert installed is not None
    pause, resume = commands("One host", "prefect-worker")
    (dump,) = commands("One host", "postgres")
    drop, restore = commands("Back", "postgres")
    pools, port = ("builds", "trainings", "probes"), free_port()
    api, user = f"http://{HOST}:{port}/api", f"igpt:{PASSWORD}"

    def paused() -> list[bool]:
        return [request(f"{api}/work_pools/{pool}", user)["is_paused"] for pool in pools]

    def run(command: list[str], environment: Mapping[str, str], **options: Any) -> str:
        program = installed / "bin" / command[0]
        words = [str(program), *command[1:]] if program.exists() else command
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        variables = {"PATH": path, "HOME": str(tmp_path), **environment}
        done = subprocess.run(
            words, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with PostgresData() as data, data.serve(HOST, free_port(), launch_here) as postgres:
        for database in ("prefect", "mlflow", "mlflow_auth"):
            postgres.create_database(database)
        keys = deployed(tmp_path / "keys", postgres)
        service = COMPOSE.service("prefect-server").reading(keys)
        servers = {
            **service.environment,
            "PREFECT_SERVER_DATABASE_HOST": postgres.address,
            "PREFECT_SERVER_DATABASE_PORT": str(postgres.port),
            "PREFECT_SERVER_DATABASE_USER": "postgres",
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_UI_STATIC_DIRECTORY": str(tmp_path / "ui"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        options = {"--host=0.0.0.0": f"--host={HOST}", "--port=4200": f"--port={port}"}
        words = [options.get(word, word) for word in service.command[1:]]
        worker = {**COMPOSE.service("deploy").reading(keys).environment, "PREFECT_API_URL": api}
        deploy = [word.replace("/etc/igpt", str(ROOT / "infra")) for word in COMPOSE.service("deploy").command]
        old, new = ([str(program), "-m", "prefect", *words] for program in (python, sys.executable))

        making = {**servers, "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "true"}
        with running(old, making, f"{api}/health", tmp_path):
            run(deploy, worker)
            for pool in pools:
                run([word.replace("POOL", pool) for word in pause], worker)
            assert paused() == [True] * 3
            run(["prefect", "flow-run", "ls", "--state", "Running"], worker)
            saved = run(dump, postgres.client_environment())
            deployments = request(f"{api}/deployments/filter", user, {})
        before = schema(postgres, "prefect")

        for job in ("migrate-mlflow", "migrate-prefect"):
            migration = COMPOSE.service(job).reading(keys)
            reached = {"PGHOST": postgres.address, "PGPORT": str(postgres.port), "PGUSER": "postgres"}
            migrate(migration.command, {**migration.environment, **servers, **reached}, tmp_path)
        assert schema(postgres, "prefect") != before
        with running(new, servers, f"{api}/health", tmp_path):
            run(deploy, worker)
            assert paused() == [True] * 3, "nothing starts before the last step"
            found = request(f"{api}/deployments/filter", user, {})
            assert {each["id"] for each in found} == {each["id"] for each in deployments}
            for pool in pools:
                run([word.replace("POOL", pool) for word in resume], worker)
            assert paused() == [False] * 3

        for database in ("prefect", "mlflow", "mlflow_auth"):
            run([word.replace("NAME", database) for word in drop], postgres.client_environment())
        run(restore, postgres.client_environment(), input=saved)
        assert schema(postgres, "prefect") == before
        with running(old, servers, f"{api}/health", tmp_path):
            assert paused() == [True] * 3
