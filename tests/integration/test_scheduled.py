"""Deployments on a Prefect server with PostgreSQL and a password, run by process workers that die at every stage.

The runs are those of `igpt deploy`, in seconds instead of days; S3, MLflow and Ray are the session's.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from flows.services import local_stack, settings
from flows.services.local_stack import Stack
from flows.services.password_files import for_prefect
from flows.services.ports import HOST, free_port
from pipeline.dataset import snapshot
from pipeline.inspect import verify
from pipeline.store import lease, objects
from tests.integration.conftest import ROOT, Command, ended, refresh_config
from tests.rigs.mlflow_server import mlflow_server
from tests.rigs.postgres import PostgresData, PostgresServer
from tests.rigs.prefect_services import PrefectServer, Worker, process_tree
from tests.rigs.s3_server import launch_here
from tests.rigs.waiting import wait_until
from tests.rigs.warm_start import WarmStart

pytestmark = pytest.mark.services

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
POOL = "tried"
AUTH = "someone:not-to-be-seen-4711"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(kw_only=True)
class Production:
    """A Prefect server with deployments, and its workers."""

    server: PrefectServer
    stack: Stack
    folder: Path
    environment: Mapping[str, str] = field(repr=False)
    """The variables of the workers and the command line."""
    warm: WarmStart
    """Runs the command line in that environment."""
    workers: list[Worker] = field(default_factory=list)

    def worker(self, pool: str = POOL, **variables: str) -> Worker:
        """Start one more worker, with variables of its own."""
        name = f"worker{len(self.workers)}"
        environment = {**self.environment, **variables}
        worker = Worker(pool=pool, environment=environment, folder=self.folder, name=name)
        self.workers.append(worker)
        worker.start()
        return worker

    def deploy(self, *deployments: dict[str, Any], arguments: tuple[str, ...] = ()) -> Command:
        """Run `igpt deploy` on a file with these deployments."""
        path = self.folder / f"prefect-{deployments[0]['name']}.yaml"
        path.write_text(yaml.safe_dump({"name": "tried", "deployments": list(deployments)}))
        return ended(self.warm.command("deploy", "--file", str(path), *arguments))

    def client(self) -> Any:
        """A client of the server, to be used as a context."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        stack = ExitStack()
        stack.enter_context(temporary_settings({PREFECT_API_URL: self.server.api_url, PREFECT_API_AUTH_STRING: AUTH}))
        client = get_client(sync_client=True)

        class Both:
            def __enter__(self) -> Any:
                return stack.enter_context(client)

            def __exit__(self, *_: object) -> None:
                stack.close()

        return Both()

    def order(self, full_name: str, due: datetime | None = None) -> UUID:
        """Create a run of a deployment, as a schedule does; due now unless `due` is given."""
        from prefect.states import Scheduled

        with self.client() as client:
            deployment = client.read_deployment_by_name(full_name)
            state = Scheduled(scheduled_time=due or datetime.now(UTC))
            return client.create_flow_run_from_deployment(deployment.id, state=state).id

    def state(self, run: UUID) -> tuple[str, str]:
        """The type of a run's state, and its message."""
        with self.client() as client:
            state = client.read_flow_run(run).state
            return state.type.value, state.message or ""

    def history(self, run: UUID) -> list[tuple[str, str]]:
        """The type and message of every state that a run had."""
        with self.client() as client:
            return [(state.type.value, state.message or "") for state in client.read_flow_run_states(run)]

    def wait(self, run: UUID, *states: str, seconds: float = 240) -> str:
        """Wait until a run is in one of the states (by default the final ones); returns its message."""
        deadline = time.monotonic() + seconds
        while True:
            state, message = self.state(run)
            if state in (states or FINAL):
                return message
            assert state not in FINAL, f"{state}: {message}\n{self.said()}"
            assert time.monotonic() < deadline, f"{state} after {seconds} s\n{self.said()}"
            time.sleep(0.2)

    def said(self) -> str:
        """The output of the newest worker."""
        return self.workers[-1].said()[-4000:] if self.workers else ""

    def steady_worker(self) -> Worker:
        """The worker of the tests that do not kill one."""
        alive = [worker for worker in self.workers if worker.pool == POOL and worker.process is not None]
        return alive[0] if alive else self.worker()

    def end_workers(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.terminate()

    def subflows(self, run: UUID) -> list[Any]:
        """The subflow runs of a run."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

        with self.client() as client:
            wanted = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
            return list(client.read_flow_runs(flow_run_filter=wanted))

    def runs_below(self, run: UUID) -> dict[str, str]:
        """The states of a run's subflow runs of any depth, by flow name."""
        states: dict[str, str] = {}
        below = self.subflows(run)
        with self.client() as client:
            for subflow in below:
                states[client.read_flow(subflow.flow_id).name] = subflow.state.type.value
        for subflow in below:
            states.update(self.runs_below(subflow.id))
        return states


@contextmanager
def production_on(stack: Stack, database_url: str, folder: Path) -> Iterator[Production]:
    """A Prefect server on a database."""
    server = PrefectServer(port=free_port(), database_url=database_url, folder=folder, auth=AUTH)
    server.start()
    profiles = folder / "client.toml"
    profiles.write_text(for_prefect(AUTH))
    environment = {
        **stack.environment(),
        "PREFECT_API_URL": server.api_url,
        "PREFECT_PROFILES_PATH": str(profiles),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        **COMPOSE["x-logs"],
    }
    with WarmStart(ROOT, environment) as warm:
        production = Production(server=server, stack=stack, folder=folder, environment=environment, warm=warm)
        try:
            yield production
        finally:
            production.end_workers()
    server.kill()


@pytest.fixture(scope="module")
def production(
    stack: Stack, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    postgres.create_database("prefect_scheduled")
    url = postgres.url("prefect_scheduled", "asyncpg")
    with production_on(stack, url, tmp_path_factory.mktemp("production")) as production:
        yield production


@pytest.fixture(scope="module")
def deployed(production: Production, digits: str) -> Production:
    """The server with a deployment for each test that kills something."""
    short, long = ("late", "two-workers"), ("killed-build", "silent-build", "restarted")
    refreshes = ("killed-refresh", "cancelled-training")
    done = production.deploy(
        *(build_entry(digits, name, samples_per_shard=100) for name in short),
        *(build_entry(digits, name) for name in long),
        build_entry(digits, "cancelled-build", samples_per_shard=1),  # still running when it is cancelled
        *(refresh_entry(digits, name) for name in refreshes),
    )
    assert done.code == 0, done.err
    return production


@pytest.fixture
def steady(deployed: Production) -> Production:
    """`deployed` with a worker that tests share and do not kill; it runs one run at a time."""
    deployed.steady_worker()
    return deployed


@pytest.fixture
def workers(deployed: Production) -> Iterator[Production]:
    """`deployed` without workers, for tests that start their own."""
    deployed.end_workers()
    yield deployed
    deployed.end_workers()


def build_entry(digits: str, name: str, samples_per_shard: int = 4, **more: Any) -> dict[str, Any]:
    config = {**refresh_config(digits, name)["dataset"], "samples_per_shard": samples_per_shard}
    return {
        "name": name,
        "entrypoint": "flows.scheduled.scheduled_build",
        "parameters": {"config": config},
        "work_pool": {"name": POOL},
        **more,
    }


def refresh_entry(digits: str, name: str) -> dict[str, Any]:
    config = refresh_config(digits, name)
    config["pretrain"]["steps"] = 200
    return {
        "name": name,
        "entrypoint": "flows.scheduled.scheduled_refresh",
        "parameters": {"config": config},
        "work_pool": {"name": POOL},
    }


def ray_processes(stack: Stack, *titles: str) -> list[psutil.Process]:
    """The processes of the session's Ray cluster whose title starts with one of `titles`."""
    processes = []
    for process in psutil.process_iter():
        try:
            title = (process.cmdline() or [""])[0]
            if title.startswith(titles) and process.environ().get("RAY_AUTH_TOKEN_PATH") == str(stack.ray_token_path):
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def has_files(folder: str, count: int) -> Callable[[], bool]:
    return lambda: sum(1 for _ in objects.list_files(folder)) >= count


def test_deploy_refuses_what_no_flow_takes_in_a_line(production: Production, digits: str) -> None:
    entry = build_entry(digits, "wrong")
    entry["parameters"]["config"]["resolution"] = "large"
    refused = production.deploy(entry)
    assert refused.code == 2
    assert "scheduled-build does not accept its parameters" in refused.err and "resolution" in refused.err
    assert "Traceback" not in refused.err and len(refused.err.strip().splitlines()) == 1
    misspelt = production.deploy(build_entry(digits, "wrong", schedulse=[]))
    assert misspelt.code == 2 and "unknown field schedulse" in misspelt.err


def test_a_schedule_fires_and_deploying_again_changes_it(deployed: Production, digits: str) -> None:
    pool = "scheduled"  # of its own, because runs may still be due after the test
    schedule = {"slug": "often", "interval": 3600.0}

    def deploy(**changes: Any) -> Command:
        entry = build_entry(digits, "by-schedule", 100, schedules=[{**schedule, **changes}])
        return deployed.deploy({**entry, "work_pool": {"name": pool}})

    first = deploy()
    assert first.code == 0, first.out + first.err
    assert "scheduled-build/by-schedule (every 3600 s)" in first.out
    again = deploy(interval=10.0)
    assert again.code == 0, again.err
    with deployed.client() as client:
        deployment = client.read_deployment_by_name("scheduled-build/by-schedule")
        assert [entry.schedule.interval for entry in deployment.schedules] == [timedelta(seconds=10)]
    worker = deployed.worker(pool)
    wait_until(lambda: objects.exists("s3://datasets/by-schedule/LATEST"), said=worker.said)
    worker.terminate()
    assert snapshot.read("s3://datasets/by-schedule").number == 1


def test_of_twenty_late_runs_one_works_and_it_is_the_newest(deployed: Production) -> None:
    deployed.end_workers()  # all runs are late before a worker polls
    now = datetime.now(UTC)
    runs = [deployed.order("scheduled-build/late", now - timedelta(minutes=20 - number)) for number in range(20)]
    deployed.steady_worker()
    deployed.wait(runs[-1], "COMPLETED")
    states = [deployed.state(run) for run in runs]
    assert [state for state, _ in states] == ["CANCELLED"] * 19 + ["COMPLETED"]
    assert all("does the same work" in message for _, message in states[:-1])
    assert snapshot.read("s3://datasets/late").number == 1


def test_two_workers_at_once_do_the_work_once(steady: Production) -> None:
    second = steady.worker()
    runs = [steady.order("scheduled-build/two-workers") for _ in range(2)]
    messages = [steady.wait(run, "COMPLETED", "CANCELLED") for run in runs]
    second.terminate()
    states = [steady.state(run)[0] for run in runs]
    assert "COMPLETED" in states  # the other one was cancelled, or started later and had nothing to do
    assert all("is working on it" in text for text, state in zip(messages, states, strict=True) if state == "CANCELLED")
    assert snapshot.read("s3://datasets/two-workers").number == 1


def test_a_run_is_cancelled_while_another_is_alive_and_names_it(steady: Production) -> None:
    with lease.hold("s3://datasets/two-workers/turn", {"flow_run": "of-elsewhere"}):
        run = steady.order("scheduled-build/two-workers")
        assert "(flow run of-elsewhere) is working on it" in steady.wait(run, "CANCELLED")


class _Hook(BaseHTTPRequestHandler):
    received: list[dict[str, str]] = []

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_a_failed_run_sends_one_notification_with_its_error_message(steady: Production, hook: str) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    message = {"subject": "{{subject}}", "body": "{{body}}"}
    entry = build_entry("s3://raw/nothing-there", "failing")
    silent = steady.deploy(entry)
    assert silent.code == 0 and "nobody is told of runs that fail" in silent.out
    with steady.client() as _:
        CustomWebhookNotificationBlock(name="igpt", url=hook, json_data=message).save("igpt", overwrite=True)
    unknown = steady.deploy(entry, arguments=("--notify", "custom-webhook/nobody"))
    assert unknown.code == 2 and "has no block custom-webhook/nobody" in unknown.err
    deployed = steady.deploy(entry)
    assert deployed.code == 0 and "igpt: tell of runs that failed" in deployed.out, deployed.err
    run = steady.order("scheduled-build/failing")
    assert "IgptError" in steady.wait(run, "FAILED")
    wait_until(lambda: _Hook.received, seconds=60)
    time.sleep(3)
    (notification,) = _Hook.received
    assert notification["subject"] == "scheduled-build Failed"
    assert "s3://raw/nothing-there" in notification["body"], notification


@pytest.mark.parametrize("stage", ["build", pytest.param("training", marks=pytest.mark.faults)])
def test_cancelling_a_run_ends_its_work_on_ray(stage: str, steady: Production) -> None:
    from prefect.states import Cancelling

    name = f"cancelled-{stage}"
    building = stage == "build"
    run = steady.order(f"scheduled-{'build' if building else 'refresh'}/{name}")
    titles = ("ray::make_shard",) if building else ("ray::RayTrainWorker",)
    wait_until(lambda: ray_processes(steady.stack, *titles), seconds=300, said=steady.said)
    with steady.client() as client:
        client.set_flow_run_state(run, Cancelling())
    steady.wait(run, "CANCELLED", seconds=60)
    wait_until(
        lambda: not ray_processes(steady.stack, "ray::make_shard", "ray::RayTrain", "ray::TrainController"), seconds=30
    )
    folder = f"s3://{'datasets' if building else 'runs'}/{name}"
    ended = [file.url for file in objects.list_files(folder) if file.url.endswith(".ended")]
    assert len(ended) == 2, "both leases were ended, so the next run need not wait"
    assert set(steady.runs_below(run).values()) <= {"CANCELLED", "COMPLETED", "CRASHED"}


@contextmanager
def held(stack: Stack) -> Iterator[None]:
    """Freeze the tasks of a build within the block, so that it does not end."""
    wait_until(lambda: ray_processes(stack, "ray::make_shard"))
    tasks = ray_processes(stack, "ray::make_shard")
    for task in tasks:
        task.suspend()
    try:
        yield
    finally:
        for task in tasks:
            with suppress(psutil.Error):
                task.resume()


@pytest.mark.faults
@pytest.mark.sample
@pytest.mark.timeout(900)
def test_a_run_outlives_its_worker_and_the_server_which_then_shows_its_true_state(workers: Production) -> None:
    """By the settings a worker gives up after 22 s (not 22 minutes; what it has started has 30 s more).

    Whether the server finds the run silent before the heartbeats of its absence arrive is chance, so that is done here.
    """
    from prefect.states import Crashed

    from flows.prefect_ops import flow_runs

    server, folder = workers.server, "s3://datasets/restarted"
    worker = workers.worker(PREFECT_CLIENT_MAX_RETRIES="0", PREFECT_WORKER_QUERY_SECONDS="0.5")
    run = workers.order("scheduled-build/restarted")
    wait_until(has_files(f"{folder}/shards", 3), said=workers.said)
    with held(workers.stack):
        (driver,) = worker.drivers()
        assert worker.process is not None and server.process is not None
        family = [*process_tree(psutil.Process(worker.process.pid)), *process_tree(psutil.Process(server.process.pid))]
        # Prefect's worker copies its password for what it starts, which takes it away from the driver.
        showing = [process for process in family if AUTH in process.environ().values()]
        assert all("flows.prefect_ops.launcher" in process.cmdline() for process in showing) and driver not in showing
        server.kill()
        wait_until(lambda: "the worker of pool tried ended" in worker.said(), said=worker.said)
        server.start()
        for silent in (run, *(subflow.id for subflow in workers.subflows(run))):  # one after the other
            with workers.client() as client:
                client.set_flow_run_state(silent, Crashed(message=f"{flow_runs.SILENT} for 300 s"), force=True)
            wait_until(lambda: flow_runs.ALIVE in [message for _, message in workers.history(silent)])  # noqa: B023
        assert workers.state(run)[0] == "RUNNING" and driver.is_running()
        server.kill()  # and is away when the work ends
    wait_until(lambda: objects.exists(f"{folder}/LATEST"), said=worker.said)
    polling = worker.polling()
    if polling is not None:  # it may have ended by itself again
        polling.kill()
    time.sleep(5)
    assert worker.drivers() == [driver], "it waits for the server, to tell it of its end"
    server.start()
    wait_until(lambda: workers.state(run)[0] == "COMPLETED", seconds=90, said=worker.said)
    assert workers.runs_below(run) == {"build-dataset": "COMPLETED"}
    assert snapshot.read(folder).number == 1
    workers.wait(workers.order("scheduled-build/restarted"), "COMPLETED")  # the same worker takes the next run
    assert worker.process is not None and worker.process.poll() is None


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.needs("postgres")
def test_a_run_outlives_a_database_that_is_away_and_a_network_that_is_cut(
    stack: Stack, digits: str, tmp_path: Path
) -> None:
    """The server without its database answers with errors, and one behind a cut network not at all."""
    folder, port = "s3://datasets/cut", free_port()
    with PostgresData() as data, ExitStack() as database:
        postgres = database.enter_context(data.serve(HOST, port, launch_here))
        postgres.create_database("prefect")
        with production_on(stack, postgres.url("prefect", "asyncpg"), tmp_path) as production:
            done = production.deploy(build_entry(digits, "cut"))
            assert done.code == 0, done.err
            worker = production.worker(PREFECT_CLIENT_MAX_RETRIES="0", PREFECT_API_REQUEST_TIMEOUT="5")
            run = production.order("scheduled-build/cut")
            wait_until(has_files(f"{folder}/shards", 3), said=production.said)
            assert production.server.process is not None
            with held(stack):
                database.close()
                time.sleep(90)  # by then Prefect's own clients have given up
                database.enter_context(data.serve(HOST, port, launch_here))
                wait_until(lambda: production.state(run)[0] == "RUNNING", said=worker.said)
                silent = process_tree(psutil.Process(production.server.process.pid))
                for process in silent:
                    process.suspend()
            wait_until(lambda: objects.exists(f"{folder}/LATEST"), said=worker.said)
            time.sleep(60)
            assert len(worker.drivers()) == 1
            for process in silent:
                process.resume()
            production.wait(run, "COMPLETED")
            assert production.runs_below(run) == {"build-dataset": "COMPLETED"}


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_refresh_outlives_an_absence_of_mlflow(workers: Production, digits: str, tmp_path: Path) -> None:
    done = workers.deploy(refresh_entry(digits, "without-mlflow"))
    assert done.code == 0, done.err
    with mlflow_server(tmp_path / "mlflow", HOST, free_port()) as mlflow:
        worker = workers.worker(MLFLOW_TRACKING_URI=mlflow.url, **settings.MLFLOW_RETRIES)
        run = workers.order("scheduled-refresh/without-mlflow")
        checkpoints = "s3://runs/without-mlflow"
        wait_until(
            lambda: any(file.url.endswith("00000040/index.json") for file in objects.list_files(checkpoints)),
            seconds=400,
            said=worker.said,
        )
        mlflow.stop()
        wait_until(lambda: "done again when that answers" in worker.said(), seconds=600, said=worker.said)
        assert workers.state(run)[0] == "RUNNING"
        mlflow.start()
        workers.wait(run, "COMPLETED", seconds=400)
        (version,) = MlflowClient(mlflow.url).search_model_versions("name = 'without-mlflow'")
        assert version.version == "1"
        (record,) = [file.url for file in objects.list_files(checkpoints) if file.url.endswith("result.json")]
        assert json.loads(objects.read_bytes(record))["steps"] == 200


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_build_outlives_an_absence_of_the_store(workers: Production, stack: Stack, home: Path, digits: str) -> None:
    done = workers.deploy(build_entry(digits, "without-store"))
    assert done.code == 0, done.err
    worker = workers.worker()
    run, folder = workers.order("scheduled-build/without-store"), "s3://datasets/without-store"
    wait_until(has_files(f"{folder}/shards", 3), said=worker.said)
    (store,) = [service.pid for service in local_stack.status(home) if service.name == "s3"]
    assert store is not None
    for process in process_tree(psutil.Process(store)):
        process.kill()
    try:
        wait_until(lambda: "done again when that answers" in worker.said(), seconds=600, said=worker.said)
        assert workers.state(run)[0] == "RUNNING"
    finally:
        assert local_stack.up(home) == stack
    workers.wait(run, "COMPLETED", seconds=400)
    built = snapshot.read(folder)
    assert (built.number, built.images(), sum(built.rejected.values())) == (1, 400, 1)
    assert verify.verify(built) == []


@pytest.mark.faults
@pytest.mark.sample
def test_a_worker_killed_in_the_build_is_closed_and_its_work_continues(workers: Production) -> None:
    doomed = workers.worker()
    dead = workers.order("scheduled-build/killed-build")
    wait_until(has_files("s3://datasets/killed-build/shards", 5), said=workers.said)
    doomed.kill()
    folder = "s3://datasets/killed-build"
    ended = {Path(file.url).stem for file in objects.list_files(f"{folder}/index")}  # written after the shard
    shards = [file for file in objects.list_files(f"{folder}/shards") if Path(file.url).stem in ended]
    finished = {file.url: file.modified for file in shards}
    assert len(finished) >= 4
    assert workers.state(dead)[0] == "RUNNING"
    workers.worker()
    heir = workers.order("scheduled-build/killed-build")
    workers.wait(heir, "COMPLETED")
    state, message = workers.state(dead)
    assert state == "CRASHED" and "its process died" in message
    assert workers.runs_below(dead) == {"build-dataset": "CRASHED"}
    published = snapshot.read(folder)
    kept = {file.url: file.modified for file in objects.list_files(f"{folder}/shards")}
    assert published.number == 1 and all(kept[url] == finished[url] for url in finished), "finished shards stay"


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_worker_killed_in_each_stage_of_a_refresh_continues_the_same_run(workers: Production) -> None:
    runs, features = "s3://runs/killed-refresh", "s3://datasets/killed-refresh-features"
    client = MlflowClient(workers.stack.mlflow_url)

    def tracked() -> Run | None:
        experiment = client.get_experiment_by_name("killed-refresh")
        return next(iter(client.search_runs([experiment.experiment_id])), None) if experiment else None

    def registers() -> bool:
        """Its first files are in the object store; the version comes last."""
        run = tracked()
        return run is not None and has_files(f"{run.info.artifact_uri}/hugging_face", 1)()

    stages: dict[str, Callable[[], bool]] = {
        "training": lambda: any(file.url.endswith("00000040/index.json") for file in objects.list_files(runs)),
        "probe": has_files(features, 1),
        "registration": registers,
    }
    dead = []
    for reached in stages.values():
        doomed = workers.worker()
        dead.append(workers.order("scheduled-refresh/killed-refresh"))
        wait_until(reached, seconds=400, said=workers.said)
        doomed.kill()
    assert not client.search_model_versions("name = 'killed-refresh'")
    workers.worker()
    heir = workers.order("scheduled-refresh/killed-refresh")
    workers.wait(heir, "COMPLETED", seconds=400)
    assert [workers.state(run)[0] for run in dead] == ["CRASHED"] * 3
    done = dict.fromkeys(("build-dataset", "pretrain", "probe"), "COMPLETED")
    assert [workers.runs_below(run) for run in (*dead, heir)] == [
        {"refresh": "CRASHED", "build-dataset": "COMPLETED", "pretrain": "CRASHED"},
        {"refresh": "CRASHED", **done, "probe": "CRASHED"},
        {"refresh": "CRASHED", **done},
        {"refresh": "COMPLETED", **done},
    ]
    (result,) = [file.url for file in objects.list_files(runs) if file.url.endswith("result.json")]
    trained = json.loads(objects.read_bytes(result))
    assert trained["restarts"] >= 1 and trained["steps"] == 200
    run = tracked()
    assert run is not None and run.info.status == "FINISHED"
    for name in ("train_loss", "probe_test_accuracy"):
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert len(steps) == len(set(steps)) > 2, name
    (version,) = client.search_model_versions("name = 'killed-refresh'")
    assert version.version == "1"
    assert client.get_model_version_by_alias("killed-refresh", "candidate").version == "1"


@pytest.mark.faults
def test_a_run_whose_process_died_is_closed_by_the_server_without_a_next_run(workers: Production) -> None:
    """After 31 s instead of the five minutes that `igpt deploy` sets; Prefect sends a heartbeat every 30 s."""
    from flows.prefect_ops import deployments

    with workers.client():
        deployments.register_automations(None, print, silent_for=timedelta(seconds=31))
    try:
        doomed = workers.worker()
        dead = workers.order("scheduled-build/silent-build")
        wait_until(has_files("s3://datasets/silent-build/shards", 1), said=workers.said)
        doomed.kill()
        assert workers.state(dead)[0] == "RUNNING"
        assert "sent no heartbeat for 31 s" in workers.wait(dead, "CRASHED", seconds=120)
    finally:
        with workers.client():
            deployments.register_automations(None, print)


def test_logs_are_json_and_carry_the_run(production: Production) -> None:
    """After the tests above."""
    lines = [line for worker in production.workers for line in worker.said().splitlines() if line.startswith("{")]
    entries = [json.loads(line) for line in lines]
    of_runs = [entry for entry in entries if entry["logger"] == "prefect.flow_runs" and "flow_run_id" in entry]
    progress = [entry for entry in of_runs if "dataset: keep 0 shards" in entry["message"]]
    assert progress and all(entry["flow_name"] == "build-dataset" for entry in progress)
    assert any("is job" in entry["message"] for entry in of_runs)


def test_no_secret_is_in_any_log_or_parameter(production: Production, home: Path) -> None:
    """After the tests above: runs were late, cancelled and have failed, and all of it was written to logs."""
    secrets = {production.stack.s3_secret_key, production.stack.ray_token_path.read_text(), AUTH.partition(":")[2]}
    ray_folder = Path(json.loads((home / "services.json").read_text())["ray_folder"])
    logs = {
        path
        for folder in (production.folder, home / "logs", ray_folder)
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix in {".log", ".out", ".err"})
    }
    assert len([path for path in logs if ray_folder in path.parents]) > 5 and len(logs) > 10
    for path in logs:
        text = path.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], path
    from prefect.client.schemas.filters import LogFilter

    with production.client() as client:
        messages = "\n".join(entry.message for entry in client.read_logs(LogFilter(), limit=200))
        runs = client.read_flow_runs(limit=200)
    assert len(runs) > 20
    everything = messages + "".join(run.model_dump_json() for run in runs)
    assert not [secret for secret in secrets if secret in everything]
