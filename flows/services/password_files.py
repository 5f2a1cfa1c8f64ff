"""The files from which MLflow, Prefect and PostgreSQL's library take passwords themselves, written and read.

Files instead of environment variables, which `docker inspect` and `kubectl describe` show and child processes inherit.
"""

import configparser
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

POSTGRES_SERVICE = "igpt"
"""The name of the service in the file of PostgreSQL's library (PGSERVICE)."""
_PROFILE = "igpt"
_AUTH = "PREFECT_API_AUTH_STRING"


def for_mlflow(user: str, password: str) -> str:
    """The text of ~/.mlflow/credentials, for MLflow's client."""
    return f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {password}\n"


def for_mlflow_server(config: str, password: str) -> str:
    """The text of MLflow's file of users (MLFLOW_AUTH_CONFIG_PATH): a config, and the administrator's password."""
    return f"{config.rstrip()}\nadmin_password = {password}\n"


def for_prefect(auth: str, server: Mapping[str, str] | None = None) -> str:
    """The text of Prefect's file of profiles (PREFECT_PROFILES_PATH): USER:PASSWORD, and settings of a server."""
    settings = {_AUTH: auth, **(server or {})}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join([f'active = "{_PROFILE}"', "", f"[profiles.{_PROFILE}]", *lines, ""])


def for_postgres(password: str) -> str:
    """The text of a service file (PGSERVICEFILE) for libpq. It takes one that the group can read; no PGPASSFILE."""
    return f"[{POSTGRES_SERVICE}]\npassword={password}\n"


def mlflow_login(path: Path) -> tuple[str | None, str | None]:
    """User and password of MLflow's client in a file as `for_mlflow` writes it; None for what it lacks."""
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read(path)
    except (OSError, configparser.Error, UnicodeDecodeError):
        return None, None
    user, password = (
        config.get("mlflow", f"mlflow_tracking_{part}", fallback=None) for part in ("username", "password")
    )
    return user, password


def prefect_auth(path: Path, profile: str | None) -> str | None:
    """USER:PASSWORD of a profile, or of the active one, in Prefect's file of profiles; None if it has none."""
    try:
        content = tomllib.loads(path.read_text())
        auth = content["profiles"][profile or content["active"]][_AUTH]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return auth if isinstance(auth, str) else None
