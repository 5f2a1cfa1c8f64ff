"""Where the services are, and how quiet the libraries: the only module that reads environment variables.

What the environment does not say is taken from the services that `igpt up` started for the folder `home`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from flows.services import local_stack
from pipeline.errors import IgptError

# Libraries print to the terminal what belongs into logs. None of these hides an error: those are raised.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # a failed flow's traceback is in the Prefect page
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns until it is told
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
# MLflow's client tries a request again after 2, 4, 8, ... seconds, by default for four minutes, and waits two each
# time: so long a run that has failed or was cancelled could not end. This makes it one minute where nobody listens, and
# four where nobody answers. Runs of deployments have it from compose.yaml and Kubernetes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_NEEDED = {
    "PREFECT_API_URL": "a Prefect server",
    "MLFLOW_TRACKING_URI": "an MLflow server",
    "RAY_ADDRESS": "a Ray cluster",
}
_CREDENTIALS = {
    "PREFECT_API_URL": "PREFECT_API_AUTH_STRING",
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "RAY_ADDRESS": "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
}
AMAZON = "Amazon S3"
"""What stands for the address of S3 where there are keys and no endpoint."""
VARIABLES = {
    "S3": "AWS_ENDPOINT_URL",
    "Prefect": "PREFECT_API_URL",
    "MLflow": "MLFLOW_TRACKING_URI",
    "Ray": "RAY_ADDRESS",
}
"""By which variable each service is found."""
CREDENTIALS = {
    "S3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    **{service: _CREDENTIALS[variable] for service, variable in VARIABLES.items() if variable in _CREDENTIALS},
}
"""By which variables each service knows who asks."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses of the services, as the environment gives them. Credentials stay in the environment."""

    prefect_api_url: str
    mlflow_tracking_uri: str
    ray_address: str

    @property
    def prefect_url(self) -> str:
        """The Prefect page."""
        return self.prefect_api_url.rstrip("/").removesuffix("/api")


def default_home() -> Path:
    """The folder of the embedded services: IGPT_HOME, or .igpt here."""
    return Path(os.environ.get("IGPT_HOME", ".igpt"))


def addresses() -> dict[str, str]:
    """The address of each service that the environment names, by S3, Prefect, MLflow and Ray; none is checked."""
    named = {service: os.environ.get(variable, "") for service, variable in VARIABLES.items()}
    named["S3"] = os.environ.get("AWS_ENDPOINT_URL_S3", named["S3"])
    if not named["S3"] and {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & set(os.environ):
        named["S3"] = AMAZON
    return {service: address for service, address in named.items() if address}


def credentials(service: str) -> str | None:
    """USER:PASSWORD for Prefect or MLflow, where the environment has them. Never to be shown."""
    if service == "Prefect":
        return os.environ.get("PREFECT_API_AUTH_STRING")
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{word}") for word in ("USERNAME", "PASSWORD"))
    return f"{name}:{password}" if name and password else None


def git_commit() -> str | None:
    """The commit the code was built from, where the deployment says so (IGPT_GIT_COMMIT)."""
    commit = os.environ.get("IGPT_GIT_COMMIT", "")
    return None if commit in ("", "unknown") else commit  # an image that was built without GIT_COMMIT says unknown


def activate(home: Path) -> None:
    """Prepare this process's environment for the libraries. To be called before Prefect, Ray or MLflow is imported."""
    for name, value in {**_QUIET, **PATIENCE}.items():
        os.environ.setdefault(name, value)
    if any(name not in os.environ for name in _NEEDED):
        stack = local_stack.load(home)
        if stack is not None:
            for name, value in stack.environment().items():
                os.environ.setdefault(name, value)


def use(stack: local_stack.Stack) -> None:
    """Point this process at an embedded stack, whatever the environment says."""
    os.environ.update(stack.environment())


def tracking_uri() -> str:
    """The address of the MLflow server alone. Raises IgptError when it is missing."""
    return _address("MLFLOW_TRACKING_URI")


def prefect_api_url() -> str:
    """The address of the Prefect server alone. Raises IgptError when it is missing."""
    return _address("PREFECT_API_URL")


def _address(name: str) -> str:
    address = os.environ.get(name)
    if not address:
        raise IgptError(
            f"no {_NEEDED[name].split(' ', 1)[1]} is known: start the services with `igpt up`, or set {name}"
        )
    if "@" in address:  # it would stand in logs, tags and links
        raise IgptError(f"{name} carries a password: leave it out there and set {_CREDENTIALS[name]} instead")
    return address


def load() -> Settings:
    """The addresses. Raises IgptError when one is missing or carries a password."""
    return Settings(
        prefect_api_url=_address("PREFECT_API_URL"),
        mlflow_tracking_uri=_address("MLFLOW_TRACKING_URI"),
        ray_address=_address("RAY_ADDRESS"),
    )
