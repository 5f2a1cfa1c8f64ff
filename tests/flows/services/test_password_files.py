"""The libraries themselves read the files, and take from them what was written."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.services import password_files

PASSWORD = 'with "quotes", \\ and % 100'
READERS = {
    "mlflow": """
import json
from mlflow.utils.credentials import read_mlflow_creds
print(json.dumps(read_mlflow_creds()))
""",
    "prefect": """
import json
from prefect.settings import get_current_settings
settings = get_current_settings()
print(json.dumps([
    settings.api.auth_string.get_secret_value(), settings.server.api.auth_string.get_secret_value(),
    settings.server.database.connection_url.get_secret_value(),
]))
""",
}


def read_by(library: str, home: Path, **variables: str) -> list[str]:
    """What a library reads, in a process with these variables."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    command = [sys.executable, "-c", READERS[library]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stderr
    read: list[str] = json.loads(done.stdout)
    return read


def test_mlflows_client_and_server_read_their_files(tmp_path: Path) -> None:
    path = tmp_path / ".mlflow" / "credentials"
    path.parent.mkdir()
    path.write_text(password_files.for_mlflow("igpt", "pass-word"))
    assert read_by("mlflow", tmp_path) == ["igpt", "pass-word"]
    assert password_files.mlflow_login(path) == ("igpt", "pass-word")
    users = configparser.ConfigParser()
    users.read_string(password_files.for_mlflow_server("# users\n[mlflow]\nadmin_username = igpt\n", "pass-word"))
    assert dict(users["mlflow"]) == {"admin_username": "igpt", "admin_password": "pass-word"}


def test_prefects_client_and_server_read_their_file(tmp_path: Path) -> None:
    path = tmp_path / "prefect.toml"
    of_server = {"PREFECT_SERVER_API_AUTH_STRING": "igpt:api", "PREFECT_SERVER_DATABASE_PASSWORD": "database"}
    path.write_text(password_files.for_prefect(f"igpt:{PASSWORD}", of_server))
    database = {"DRIVER": "postgresql+asyncpg", "HOST": "postgres", "USER": "prefect", "NAME": "runs"}
    variables = {f"PREFECT_SERVER_DATABASE_{name}": value for name, value in database.items()}
    read = read_by("prefect", tmp_path, PREFECT_PROFILES_PATH=str(path), **variables)
    assert read == [f"igpt:{PASSWORD}", "igpt:api", "postgresql+asyncpg://prefect:database@postgres:5432/runs"]
    assert password_files.prefect_auth(path, None) == f"igpt:{PASSWORD}"
    assert password_files.prefect_auth(path, "igpt") == f"igpt:{PASSWORD}"


@pytest.mark.parametrize(
    "text", ["", "[mlflow]\n", "active = 1", "[profiles]\nigpt = 3", "no section", 'active = "x"\n[profiles.y]\n']
)
def test_a_file_without_a_password_has_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert password_files.prefect_auth(path, None) is None, "no such file"
    assert password_files.mlflow_login(path) == (None, None)
    path.write_text(text)
    assert password_files.prefect_auth(path, None) is None
    assert password_files.mlflow_login(path) == (None, None)
