"""MLflow as compose.yaml starts it, with passwords: who gets access, and that no output shows a password.

tests/integration/test_scheduled.py covers Prefect's password.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

from flows.services import settings
from flows.services.password_files import for_mlflow, for_mlflow_server
from flows.services.ports import HOST, free_port
from igpt_model.registry.client import Registry
from igpt_model.tracking import runs
from pipeline.errors import IgptError
from tests.rigs.compose import KEYS
from tests.rigs.s3_server import launch_here

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
PASSWORD = "not-to-be-seen-4711"
FORMS_KEY = "signs-the-forms-4711"


@dataclass(frozen=True, kw_only=True)
class Mlflow:
    """A server with passwords."""

    port: int
    log: Path
    pid: int

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"http://{HOST}:{self.port}"

    def get(self, path: str, headers: dict[str, str] | None = None) -> int:
        """The HTTP status of a GET request."""
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", headers=headers or {})) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """The command and the configuration of compose.yaml, on SQLite and loopback."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    replaced = {
        "mlflow": f"{sys.executable} -m mlflow",
        "--host=0.0.0.0": f"--host={HOST}",
        "--port=5000": f"--port={port}",
        "--workers=2": "--workers=1",
    }
    command = [
        part.replace(":5000", f":{port}")
        for word in COMPOSE["services"]["mlflow"]["command"]
        for part in (
            replaced[word].split() if word in replaced else [word.replace("$$", "$").replace(KEYS, str(folder))]
        )
    ]
    content = (ROOT / "infra" / "mlflow-auth.ini").read_text()
    lines = [
        f"database_uri = sqlite:///{folder}/auth.db" if line.startswith("database_uri") else line
        for line in content.splitlines()
    ]
    (folder / "mlflow-auth.ini").write_text(for_mlflow_server("\n".join(lines), PASSWORD))
    (folder / "forms-key").write_text(FORMS_KEY)
    environment = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "mlflow-auth.ini"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    process = launch_here(command, environment, folder / "server.log")
    server = Mlflow(port=port, log=folder / "server.log", pid=process.pid)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                runs.check_reachable(server.url)
                break
            except IgptError:
                assert process.poll() is None and time.monotonic() < deadline, server.log.read_text()[-3000:]
                time.sleep(0.5)
        yield server
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_missing_and_wrong_passwords_are_refused(mlflow: Mlflow) -> None:
    search = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert mlflow.get("/health") == 200, "health checks have no password"
    assert mlflow.get(search) == 401
    assert mlflow.get(search, {"Authorization": "Basic aWdwdDp3cm9uZw=="}) == 401  # igpt:wrong
    assert mlflow.get(search, {"Host": "evil.example:5000"}) == 403, "a foreign host name (DNS rebinding)"


CLIENT = """
import sys
from flows.services import settings
from igpt_model.tracking import runs as tracking
from mlflow import MlflowClient
print(settings.tracking_uri())
client = MlflowClient(settings.tracking_uri())
print(client.create_run(client.create_experiment(sys.argv[1])).info.status)
"""


def create_run(mlflow: Mlflow, name: str, home: Path, password: str) -> subprocess.CompletedProcess[str]:
    """Create a run with the password of ~/.mlflow/credentials."""
    file = home / ".mlflow" / "credentials"
    file.parent.mkdir(parents=True)
    file.write_text(for_mlflow("igpt", password))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment["HOME"] = str(home)
    return subprocess.run(
        [sys.executable, "-c", CLIENT, name], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_client_with_the_password_works_and_no_output_shows_it(mlflow: Mlflow, tmp_path: Path) -> None:
    accepted = create_run(mlflow, "accepted", tmp_path / "right", PASSWORD)
    assert accepted.returncode == 0, accepted.stderr
    assert accepted.stdout.splitlines()[-1] == "RUNNING"
    wrong = f"{PASSWORD}-no"
    refused = create_run(mlflow, "refused", tmp_path / "wrong", wrong)
    assert refused.returncode != 0
    assert "401" in refused.stderr or "Unauthorized" in refused.stderr or "not authenticated" in refused.stderr
    for output in (accepted.stdout, accepted.stderr, refused.stdout, refused.stderr, mlflow.log.read_text()):
        assert PASSWORD not in output


def test_a_user_that_was_just_made_finds_models_to_load_and_changes_none(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of the pods of `igpt serve`."""

    def sign_in(name: str, password: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        return MlflowClient(mlflow.url)

    administrator = sign_in("igpt", PASSWORD)
    administrator.create_registered_model("digits")
    administrator.create_model_version("digits", "s3://mlflow/digits")
    administrator.set_registered_model_alias("digits", "champion", "1")
    get_app_client("basic-auth", mlflow.url).create_user("serve", "reads-models-only")
    reader = sign_in("serve", "reads-models-only")
    assert Registry(mlflow.url).find("digits@champion").number == 1
    assert reader.get_model_version_download_uri("digits", "1") == "s3://mlflow/digits"
    for change in (
        lambda: reader.set_registered_model_alias("digits", "champion", "1"),
        lambda: reader.create_model_version("digits", "s3://mlflow/other"),
        lambda: reader.delete_registered_model("digits"),
    ):
        with pytest.raises(MlflowException, match="Permission denied"):
            change()


def test_no_process_of_the_server_has_the_password_in_its_environment(mlflow: Mlflow) -> None:
    """Only the key of the forms is, since MLflow reads it from nowhere else; nothing is on a command line."""
    process = psutil.Process(mlflow.pid)
    family = [process, *process.children(recursive=True)]
    assert len(family) > 1, "the server starts others"
    for member in family:
        shown = {name: value for name, value in member.environ().items() if PASSWORD in value or FORMS_KEY in value}
        assert set(shown) <= {"MLFLOW_FLASK_SERVER_SECRET_KEY"}
        assert not [word for word in member.cmdline() if PASSWORD in word or FORMS_KEY in word]


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
def test_an_address_that_carries_a_password_is_refused_without_repeating_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.setenv(variable, "http://host:1234")
    monkeypatch.setenv(name, f"http://igpt:{PASSWORD}@host:1234")
    with pytest.raises(IgptError, match=f"{name} carries a password") as refused:
        settings.load()
    assert PASSWORD not in str(refused.value)
