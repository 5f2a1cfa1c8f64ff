"""What was deleted in MLflow is removed when it is old, unless a registered version is made of it."""

from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

from igpt_model.tracking import deleted_runs
from pipeline.errors import IgptError


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def age(database: str, run: str) -> None:
    """Make a run one that was deleted ten days ago."""
    engine = sqlalchemy.create_engine(database)
    with engine.begin() as connection:
        update = "UPDATE runs SET deleted_time = deleted_time - 864000000 WHERE run_uuid = :run"
        connection.execute(sqlalchemy.text(update), {"run": run})
    engine.dispose()


def test_old_deleted_runs_are_removed_with_their_artifacts(database: str, tmp_path: Path) -> None:
    client = MlflowClient(database)
    experiment = client.create_experiment("nightly", artifact_location=(tmp_path / "artifacts").as_uri())
    kept, recent, old, registered = (client.create_run(experiment).info.run_id for _ in range(4))
    (tmp_path / "loss.png").write_bytes(b"a picture")
    for run in (kept, recent, old, registered):
        client.log_artifact(run, str(tmp_path / "loss.png"))
    client.create_registered_model("digits")
    client.create_model_version("digits", str(tmp_path), run_id=registered)
    for run in (recent, old, registered):
        client.delete_run(run)
    for run in (old, registered):
        age(database, run)
    assert set(deleted_runs.find(database, days=9).runs) == {old, registered}
    assert len(deleted_runs.find(database, days=11)) == 0
    assert list(deleted_runs.used_by(database)) == [
        f"models:/digits/1 is registered, and its run {registered} was deleted"
    ]
    client.restore_run(registered)
    assert list(deleted_runs.used_by(database)) == []
    deleted_runs.remove(database, database, days=9)
    pictures = {path.parts[-3] for path in (tmp_path / "artifacts").rglob("loss.png")}
    assert pictures == {kept, recent, registered}
    assert {run.info.run_id for run in client.search_runs([experiment], run_view_type=3)} == {kept, recent, registered}
    assert len(deleted_runs.find(database, days=9)) == 0


def test_a_version_whose_experiment_was_deleted_is_told(database: str, tmp_path: Path) -> None:
    client = MlflowClient(database)
    experiment = client.create_experiment("other", artifact_location=tmp_path.as_uri())
    run = client.create_run(experiment).info.run_id
    client.create_registered_model("faces")
    client.create_model_version("faces", str(tmp_path), run_id=run)
    client.delete_experiment(experiment)
    (line,) = [line for line in deleted_runs.used_by(database) if "models:/faces/1" in line]
    assert "was deleted" in line


def test_bad_databases_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(IgptError, match="carries a password: leave it out there, for the file of PGSERVICEFILE"):
        deleted_runs.find("postgresql+psycopg2://mlflow:secret@host/mlflow", days=1)
    with pytest.raises(IgptError, match=r"(?i)connection refused.*set mlflow=null") as raised:
        deleted_runs.find("postgresql+psycopg2://mlflow@127.0.0.1:1/mlflow", days=1)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(IgptError, match="correct it, or set mlflow=null"):
        deleted_runs.find("no-url", days=1)
