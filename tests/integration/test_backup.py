"""Everything is lost but the machines that compute; a backup brings back datasets, models and a training.

PostgreSQL behind MLflow and Prefect, the store, MLflow and Prefect are killed with their data, and start anew empty.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
import yaml
from mlflow import MlflowClient
from mlflow.entities import ViewType

from flows.services import process
from flows.services.local_stack import Stack
from flows.services.password_files import POSTGRES_SERVICE, for_postgres
from flows.services.ports import HOST, free_port
from flows.services.services import services, short_folder
from flows.services.store_keys import derive, write, write_steps
from flows.services.store_rights import BUCKETS
from igpt_model.registry import client, register
from igpt_model.runs import checkpoint, record
from igpt_model.runs.open_model import load_model
from pipeline.store import objects
from tests import machine
from tests.conftest import Command
from tests.integration.conftest import ROOT, ended
from tests.integration.test_scheduled import ray_processes
from tests.rigs import postgres as postgres_rig
from tests.rigs.mlflow_server import MlflowServer
from tests.rigs.postgres import PostgresData
from tests.rigs.prefect_services import PrefectServer
from tests.rigs.s3_server import launch_here
from tests.rigs.waiting import wait_until
from tests.rigs.warm_start import WarmStart

pytestmark = [pytest.mark.services, pytest.mark.long]

DATASET, RUNS = "s3://datasets/digits", "s3://runs/digits"
TRAINING = {
    **{"dataset": DATASET, "runs": RUNS, "preset": "tiny", "layers": 2, "steps": 120, "global_batch": 128},
    **{"warmup_steps": 10, "checkpoint_every": 20, "evaluate_every": 60, "sample_every": 0, "workers": 1},
    **{"experiment": "digits", "model_name": "digits"},
}


def _vacuum() -> dict[str, str]:
    """The settings of compose by which Prefect removes old flow runs."""
    environment = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]["prefect-server"][
        "environment"
    ]
    return {name: value for name, value in environment.items() if "_DB_VACUUM_" in name}


class Place:
    """All services, with addresses and passwords that stay when their data are lost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = [free_port() for _ in range(4)]
        self.postgres_port = free_port()
        self.stack = Stack(
            s3_url=f"http://{HOST}:{ports[0]}",
            s3_access_key="igpt",
            s3_secret_key="secret-of-the-test",
            keys_folder=folder / "keys",
            signing_key=folder / "signing-key",
            trusted_keys=folder / "trusted-keys",
            prefect_url=f"http://{HOST}:{ports[1]}",
            mlflow_url=f"http://{HOST}:{ports[2]}",
            ray_address=f"{HOST}:{ports[3]}",
            ray_token_path=folder / "ray-token",
        )
        write_steps(self.stack.keys_folder, derive(self.stack.administrator))
        write(self.stack.ray_token_path, "0123456789abcdef0123456789abcdef")
        self.postgres = PostgresData()
        self.password_file = folder / "pg_service.conf"
        self.password_file.write_text(for_postgres(self.postgres.password))
        self.running = ExitStack()
        self._count = 0

    def variables(self) -> dict[str, str]:
        """Of clients, with those of PostgreSQL's programs."""
        installed = postgres_rig.installation()
        assert installed is not None
        return {
            **self.stack.environment(),
            "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2:///mlflow",
            "PATH": f"{installed / 'bin'}:{os.environ['PATH']}",
            "PGHOST": HOST,
            "PGPORT": str(self.postgres_port),
            "PGUSER": "postgres",
            "PGSERVICE": POSTGRES_SERVICE,
            "PGSERVICEFILE": str(self.password_file),
        }

    def start_empty(self) -> None:
        """A store with empty buckets, and a PostgreSQL with empty databases."""
        self._count += 1
        home = self.folder / f"place{self._count}"
        for name in ("logs", "s3", *(f"s3/{bucket}" for bucket in BUCKETS)):
            (home / name).mkdir(parents=True)
        s3 = services(home, self.stack, short_folder(home))[0]
        self._start(s3)
        password = self.postgres.password
        self.postgres = PostgresData()
        self.postgres.password = password
        self.running.enter_context(self.postgres)
        server = self.running.enter_context(self.postgres.serve(HOST, self.postgres_port, launch_here))
        for name in ("mlflow", "prefect"):
            server.create_database(name)
        self._server = server

    def start_servers(self) -> None:
        """MLflow and Prefect on the databases."""
        folder = self.folder / f"place{self._count}"
        mlflow = MlflowServer(
            folder / "mlflow",
            HOST,
            int(self.stack.mlflow_url.rpartition(":")[2]),
            database=self._server.url("mlflow"),
            store={name: value for name, value in self.stack.environment().items() if "AWS" in name or "S3" in name},
        )
        self.running.callback(mlflow.stop)
        mlflow.start()
        prefect = PrefectServer(
            port=int(self.stack.prefect_url.rpartition(":")[2]),
            database_url=self._server.url("prefect", "asyncpg"),
            folder=folder,
            settings={**_vacuum(), "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "3"},
        )
        self.running.callback(prefect.kill)
        prefect.start()

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """The rows that a statement gives in Prefect's database."""
        engine = sqlalchemy.create_engine(self._server.url("prefect"))
        with engine.begin() as connection:
            answer = connection.execute(sqlalchemy.text(statement))
            rows = [tuple(row) for row in answer] if answer.returns_rows else []
        engine.dispose()
        return rows

    def flow_runs(self, condition: str) -> list[str]:
        """The ids of Prefect's flow runs that meet a condition."""
        return [str(row[0]) for row in self.sql(f"SELECT id FROM flow_run WHERE {condition}")]

    def lose(self) -> None:
        """Kill everything and remove its data."""
        self.running.close()
        self.running = ExitStack()
        shutil.rmtree(self.folder / f"place{self._count}")

    def _start(self, service: process.Service) -> None:
        service.folder.mkdir(exist_ok=True)
        service.log.parent.mkdir(exist_ok=True)
        running = process.start(service)
        self.running.callback(process.end, [running], timeout_seconds=5)
        wait_until(lambda: service.check() is None, seconds=120)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The place, with a Ray that is not lost."""
    machine.require("postgres")
    place = Place(tmp_path_factory.mktemp("backup"))
    home = place.folder / "ray-home"
    (home / "ray").mkdir(parents=True)
    (home / "logs").mkdir()
    folder = short_folder(home)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    head = services(home, place.stack, folder)[-1]
    started = process.start(head)
    try:
        wait_until(lambda: head.check() is None, seconds=120)
        yield place
    finally:
        process.end([started], timeout_seconds=10)
        process.end(process.service_processes(home, ["ray"], folder), timeout_seconds=2)
        shutil.rmtree(folder, ignore_errors=True)
        place.running.close()


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was before everything was lost, and how to run commands on what was restored."""

    place: Place
    igpt: Callable[..., Command]
    calm: dict[str, object]
    """The result of the training that nothing disturbed."""
    version: client.Version
    """It, registered."""
    tracked: str
    """The MLflow run of the training that was killed."""
    said: tuple[str, str, str]
    """What the commands said that saved, that refused to restore over it, and that restored."""


@pytest.fixture(scope="module")
def restored(ray: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restored]:
    """A dataset, a registered model and a killed training are saved, lost and restored."""
    from flows.demo import encode_digits

    place, backups = ray, tmp_path_factory.mktemp("saved") / "backups"
    with pytest.MonkeyPatch.context() as variables, WarmStart(ROOT, place.variables()) as warm:
        for name, value in place.variables().items():
            if not name.startswith("RAY_"):  # other modules start a Ray in this process
                variables.setenv(name, value)

        def igpt(*arguments: str, code: int = 0) -> Command:
            command = ended(warm.command(*arguments), 900)
            assert command.code == code, command.out + command.err
            return command

        place.start_empty()
        place.start_servers()
        objects.write_many(dict(list(encode_digits("s3://raw/digits").items())[:200]))
        igpt("dataset", "build", "raw=s3://raw/digits", f"dataset={DATASET}", "resolution=8", "colours=16",
             "samples_per_shard=100", "validation_fraction=0.15", "test_fraction=0.2")  # fmt: skip
        fields = [f"{name}={value}" for name, value in TRAINING.items()]
        igpt("pretrain", *fields, "name=calm")
        calm = json.loads(objects.read_bytes(f"{RUNS}/calm/result.json"))
        version = register.register(
            load_model(f"{RUNS}/calm"),
            name="digits",
            tracking_uri=place.stack.mlflow_url,
            run_id=str(record.read(f"{RUNS}/calm").mlflow_run),
            tags={"igpt.dataset": DATASET, "igpt.snapshot": "1"},
            best_layer=1,
        )
        cut = warm.command("pretrain", *fields, "name=cut")
        wait_until(lambda: objects.exists(f"{RUNS}/cut/checkpoints/00000020/index.json"), seconds=500)
        cut.send_signal(signal.SIGKILL)
        for worker in ray_processes(place.stack, "ray::RayTrainWorker"):
            worker.kill()
        cut.wait(timeout=60)
        assert not objects.exists(f"{RUNS}/cut/result.json")
        tracked = record.read(f"{RUNS}/cut").mlflow_run
        assert tracked is not None
        saved = igpt("backup", "save", str(backups), "databases=[mlflow, prefect]")
        refused = igpt("backup", "restore", str(backups), code=2)
        place.lose()
        place.start_empty()
        given_back = igpt("backup", "restore", str(backups))
        place.start_servers()
        yield Restored(
            place=place,
            igpt=igpt,
            calm=calm,
            version=version,
            tracked=tracked,
            said=(saved.out, refused.err, given_back.out),
        )


@pytest.mark.timeout(1800)
def test_a_backup_brings_back_datasets_models_and_an_unfinished_training(restored: Restored) -> None:
    saved, refused, given_back = restored.said
    print(saved, given_back)
    assert "is whole: 2 databases" in saved and "is restored: 2 databases" in given_back
    assert len(refused.splitlines()) == 1 and "is not empty" in refused
    assert "everything matches the manifest" in restored.igpt("dataset", "verify", DATASET).out
    (listed,) = json.loads(restored.igpt("models", "ls", "--json").out)
    assert (listed["uri"], listed["aliases"]) == (restored.version.uri, ["candidate"])
    client.Registry(restored.place.stack.mlflow_url).open("digits@candidate")  # verifies its files
    restored.igpt("runs", "resume", f"{RUNS}/cut")
    result = json.loads(objects.read_bytes(f"{RUNS}/cut/result.json"))
    same = ("steps", "images", "validation_loss", "train_loss", "skipped_steps", "snapshot_digest")
    assert {name: result[name] for name in same} == {name: restored.calm[name] for name in same}
    assert (result["restarts"], restored.calm["restarts"]) == (1, 0)
    mlflow = MlflowClient(restored.place.stack.mlflow_url)
    assert record.read(f"{RUNS}/cut").mlflow_run == restored.tracked
    assert mlflow.get_run(restored.tracked).info.status == "FINISHED"
    steps = [metric.step for metric in mlflow.get_metric_history(restored.tracked, "train_loss")]
    assert steps == list(range(10, 130, 10)), "every step once, in the MLflow run of before"


def test_what_nobody_needs_is_removed_and_what_is_in_use_stays(restored: Restored) -> None:
    mlflow = MlflowClient(restored.place.stack.mlflow_url)
    experiment = mlflow.get_run(restored.version.run_id).info.experiment_id
    useless = mlflow.create_run(experiment).info.run_id
    mlflow.log_text(useless, "a note", "note.txt")
    for run in (useless, restored.version.run_id):
        mlflow.delete_run(run)
    features = f"{DATASET}-features/net/shard-1/layer-00.npy"
    objects.write_bytes(features, b"features")
    finished = [run for run in ("calm", "cut") if objects.exists(f"{RUNS}/{run}/result.json")]
    steps = {run: checkpoint.marked_steps(f"{RUNS}/{run}") for run in finished}
    assert max(map(len, steps.values())) > 1
    fields = ["checkpoints=0", "features=0", "mlflow=0"]
    shown = json.loads(restored.igpt("clean", *fields, "--dry-run", "--json").out)
    assert {entry["what"] for entry in shown} == {"checkpoints", "features", "MLflow runs"}
    assert {run: checkpoint.marked_steps(f"{RUNS}/{run}") for run in finished} == steps and objects.exists(features)
    (refused,) = [entry for entry in shown if entry["kept_because"]]
    assert f"{restored.version.uri} is registered, and its run" in refused["kept_because"]

    mlflow.restore_run(restored.version.run_id)
    told = restored.igpt("clean", *fields).out
    assert "Prefect removes flow runs, with their logs, 90 days after their end" in told
    assert {run: checkpoint.marked_steps(f"{RUNS}/{run}") for run in finished} == {
        run: marked[-1:] for run, marked in steps.items()
    }
    assert not objects.exists(features)
    left = {run.info.run_id for run in mlflow.search_runs([experiment], run_view_type=ViewType.ALL)}
    assert useless not in left and {restored.version.run_id, restored.tracked} <= left
    assert not [file for file in objects.list_files("s3://mlflow") if useless in file.url]
    client.Registry(restored.place.stack.mlflow_url).open("digits@candidate")
    assert json.loads(restored.igpt("clean", *fields, "--json").out) == [], "a second time there is nothing to do"


def test_prefect_removes_what_ended_long_ago_and_nothing_that_runs(restored: Restored) -> None:
    """With the settings of compose and a shorter pause between two looks."""
    place = restored.place
    ended_runs, open_runs = (place.flow_runs(f"end_time IS {what} NULL") for what in ("NOT", ""))
    assert ended_runs and open_runs, "the training that was killed has no end"
    (oldest,) = place.flow_runs("end_time IS NOT NULL AND parent_task_run_id IS NULL ORDER BY end_time LIMIT 1")
    place.sql(f"UPDATE flow_run SET end_time = end_time - interval '91 days' WHERE id = '{oldest}'")
    wait_until(lambda: oldest not in place.flow_runs("true"), seconds=120)
    assert set(place.flow_runs("true")) == {*ended_runs, *open_runs} - {oldest}
