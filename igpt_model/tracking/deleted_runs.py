"""What was deleted in MLflow and is still in its database and store: removed for good by `mlflow gc`.

Deleting a run on MLflow's page only hides it. `mlflow gc` works on the database itself; it has no dry run, and does not
look at registered versions, so this module adds both.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import _get_store  # as `mlflow gc` does

from igpt_model.registry.client import Registry, Version, one_line
from pipeline.errors import IgptError, first_line
from pipeline.printable import printable


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """What was deleted long ago, by id."""

    runs: tuple[str, ...]
    models: tuple[str, ...]
    """MLflow's LoggedModels, whose files those of a registered version are."""
    experiments: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.runs) + len(self.models) + len(self.experiments)


def find(database: str, days: float) -> Deleted:
    """What was deleted more than `days` days ago, by the database at a SQLAlchemy URL.

    Raises IgptError when it cannot be read, or when the URL carries a password, which other users could see.
    """
    if urlsplit(database).password:
        raise IgptError(
            "MLFLOW_BACKEND_STORE_URI carries a password: leave it out there, for the file of PGSERVICEFILE"
        )
    milliseconds = int(days * 86_400_000)
    _check_answers(database)
    with one_line(database):
        store = _get_store(database)
        now = int(time.time() * 1000)
        experiments = store.search_experiments(
            view_type=ViewType.DELETED_ONLY, filter_string=f"last_update_time < {now - milliseconds}"
        )
        return Deleted(
            runs=tuple(store._get_deleted_runs(older_than=milliseconds)),
            models=tuple(store._get_deleted_logged_models(older_than=milliseconds)),
            experiments=tuple(experiment.experiment_id for experiment in experiments),
        )


def _check_answers(database: str) -> None:
    """Raise IgptError soon when a database does not answer; MLflow would try again for minutes."""
    try:
        engine = sqlalchemy.create_engine(database)
        with engine.connect():
            pass
        engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise IgptError(
            f"MLFLOW_BACKEND_STORE_URI is {database}: {first_line(error)}; correct it, or set mlflow=null"
        ) from None


def used_by(tracking_uri: str) -> Iterator[str]:
    """A line for each registered version whose run, experiment or model was deleted, which would lose its files."""
    registry, client = Registry(tracking_uri), MlflowClient(tracking_uri)
    for name in registry.names():
        for version in registry.versions(name):
            if (what := _deleted_of(client, version)) is not None:
                yield f"{version.uri} is registered, and its {what} was deleted"


def _deleted_of(client: MlflowClient, version: Version) -> str | None:
    with one_line(version.uri):
        if version.run_id:
            run = client.get_run(version.run_id)
            if run.info.lifecycle_stage == LifecycleStage.DELETED:
                return f"run {version.run_id}"
            experiment = client.get_experiment(run.info.experiment_id)
            if experiment.lifecycle_stage == LifecycleStage.DELETED:
                return f"experiment {experiment.name}"
    if version.model_id.startswith("m-"):
        try:
            client.get_logged_model(version.model_id)
        except MlflowException:
            return f"model {version.model_id}"
    return None


def remove(database: str, tracking_uri: str, days: float) -> None:
    """Remove what was deleted more than `days` days ago, with its artifacts. Raises IgptError with MLflow's message."""
    command = [
        sys.executable, "-m", "mlflow", "gc", "--older-than", f"{days:f}d", "--backend-store-uri", database,
        "--tracking-uri", tracking_uri,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise IgptError(f"`mlflow gc` failed: {printable(last)[:300]}; run it by hand to see more")
