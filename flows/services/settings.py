"""Addresses and credentials of the services, and the libraries' settings. Only this module reads the environment.

Variables that are not set come from the services that `igpt up` started for the folder `home`.
"""

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from flows.services import local_stack, password_files
from flows.services.ports import HOST
from flows.services.store_rights import STEPS
from pipeline.errors import IgptError
from pipeline.store.credentials import StoreKey, forget_clients

# Keeps log output of libraries off the terminal. Errors are raised, so none of these hides one.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # a failed flow's traceback is on the Prefect page
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns unless it is set
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
# MLflow's client retries a request after 2, 4, 8, ... seconds, by default for four minutes, with a timeout of two
# minutes each; a failed or cancelled run could not end meanwhile. These values give up after one minute if nothing
# listens, and after four if nothing answers. Deployed runs get them from compose.yaml and Kubernetes.
MLFLOW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_OF_THE_STORE = ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE")
_SERVICES = {
    "PREFECT_API_URL": "a Prefect server",
    "MLFLOW_TRACKING_URI": "an MLflow server",
    "RAY_ADDRESS": "a Ray cluster",
}
_CREDENTIALS = {
    "PREFECT_API_URL": "PREFECT_API_AUTH_STRING (a variable, or in the file of PREFECT_PROFILES_PATH)",
    "MLFLOW_TRACKING_URI": "~/.mlflow/credentials, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "RAY_ADDRESS": "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN",
}
AMAZON = "Amazon S3"
"""Stands for the address of S3 when credentials are set and no endpoint."""
VARIABLES = {
    "S3": "AWS_ENDPOINT_URL",
    "Prefect": "PREFECT_API_URL",
    "MLflow": "MLFLOW_TRACKING_URI",
    "Ray": "RAY_ADDRESS",
}
"""The variable that holds each service's address."""
CREDENTIALS = {
    "S3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    **{service: _CREDENTIALS[variable] for service, variable in VARIABLES.items() if variable in _CREDENTIALS},
}
"""Where each service's credentials are set."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses of the services, from the environment. Credentials stay in the environment."""

    prefect_api_url: str
    mlflow_tracking_uri: str
    ray_address: str

    @property
    def prefect_url(self) -> str:
        """The address of Prefect's web page."""
        return self.prefect_api_url.rstrip("/").removesuffix("/api")


def default_home() -> Path:
    """The folder of the local services: IGPT_HOME, or .igpt in the working directory."""
    return Path(os.environ.get("IGPT_HOME") or ".igpt")


def home_folder(given: Path | None) -> Path:
    """The given folder of the local services, or the default one. Raises IgptError when there is no such path."""
    try:
        folder = (given or default_home()).absolute()
        folder.resolve()
    except FileNotFoundError:
        raise IgptError("the working directory does not exist any more; change to another one") from None
    except RuntimeError:
        raise IgptError(f"{folder}: a loop of links; give another folder with --home or IGPT_HOME") from None
    return folder


def addresses() -> dict[str, str]:
    """The configured addresses by service (S3, Prefect, MLflow, Ray), unchecked; services without one are left out."""
    configured = {service: os.environ.get(variable, "") for service, variable in VARIABLES.items()}
    configured["S3"] = os.environ.get("AWS_ENDPOINT_URL_S3", configured["S3"])
    if not configured["S3"] and {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & set(os.environ):
        configured["S3"] = AMAZON
    return {service: address for service, address in configured.items() if address}


def credentials(service: str) -> str | None:
    """USER:PASSWORD for Prefect or MLflow, or None if not set, from where its client takes it. Must not be shown."""
    if service == "Prefect":
        if auth := os.environ.get("PREFECT_API_AUTH_STRING"):
            return auth
        home = Path(os.environ.get("PREFECT_HOME") or _own_folder() / ".prefect")
        profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
        return password_files.prefect_auth(profiles, os.environ.get("PREFECT_PROFILE"))
    of_file = password_files.mlflow_login(_own_folder() / ".mlflow" / "credentials")
    of_variables = (os.environ.get(f"MLFLOW_TRACKING_{part}") for part in ("USERNAME", "PASSWORD"))
    user, password = (given or stored for given, stored in zip(of_variables, of_file, strict=True))
    return f"{user}:{password}" if user and password else None


def _own_folder() -> Path:
    """The home folder of this process's user, who may have none in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/no-home")


def store_key(step: str) -> StoreKey | None:
    """The key of a step (store_rights.STEPS) from the folder IGPT_KEYS, or None where one key serves all steps.

    Its file holds ACCESS_KEY:SECRET_KEY. Raises IgptError when it cannot be used.
    """
    folder = os.environ.get("IGPT_KEYS")
    if not folder:
        return None
    path = Path(folder) / step
    try:
        access_key, colon, secret_key = path.read_text().strip().partition(":")
    except OSError as error:
        raise IgptError(f"{path} cannot be read: {error.strerror}; create it, or correct IGPT_KEYS") from None
    if not (access_key and colon and secret_key):
        raise IgptError(f"{path} does not hold ACCESS_KEY:SECRET_KEY; correct it")
    return StoreKey(role=step, access_key=access_key, secret_key=secret_key)


def keys_by_step() -> bool:
    """Whether each step of a flow has a key of the object store of its own. Raises IgptError as store_key does."""
    keys = [store_key(step) for step in STEPS]
    return None not in keys and len({key.access_key for key in keys if key is not None}) == len(STEPS)


def trusted_keys() -> Path | None:
    """The file of the keys whose signatures of models count (IGPT_TRUSTED_KEYS); None where it is not set."""
    return _file("IGPT_TRUSTED_KEYS")


def signing_key() -> Path | None:
    """The file of the key that signs registered models (IGPT_SIGNING_KEY); None where it is not set."""
    return _file("IGPT_SIGNING_KEY")


def _file(name: str) -> Path | None:
    path = os.environ.get(name)
    return Path(path) if path else None


def require_signed() -> bool:
    """Whether models open only with a signature that counts (IGPT_REQUIRE_SIGNED). Raises IgptError else."""
    value = os.environ.get("IGPT_REQUIRE_SIGNED", "") or "false"
    if value not in ("true", "false"):
        raise IgptError(f"IGPT_REQUIRE_SIGNED is {value!r}; set it to true or false")
    return value == "true"


def allowed_urls() -> tuple[str, ...] | None:
    """The URLs below which deployed runs may name places (IGPT_ALLOWED_URLS, with spaces between); None: anywhere.

    Raises IgptError for what is not on a store: local paths and web servers are for the command line.
    """
    text = os.environ.get("IGPT_ALLOWED_URLS")
    if not text:
        return None
    for url in text.split():
        scheme, separator, rest = url.partition("://")
        if not (separator and rest) or scheme in ("file", "http", "https", "local"):
            raise IgptError(f"IGPT_ALLOWED_URLS has {url!r}; give buckets, such as s3://raw, with spaces between")
    return tuple(text.split())


def git_commit() -> str | None:
    """The commit that the deployment declares in IGPT_GIT_COMMIT, or None."""
    commit = os.environ.get("IGPT_GIT_COMMIT", "")
    return None if commit in ("", "unknown") else commit  # "unknown" in an image built without GIT_COMMIT


def prepare_driver() -> str:
    """Prepare the environment of a flow run's process, and return the run's id. Raises IgptError without a run."""
    run_id = os.environ.get("PREFECT__FLOW_RUN_ID")
    if not run_id:
        raise IgptError("no flow run is named: PREFECT__FLOW_RUN_ID, which a Prefect worker sets, is missing")
    # Its worker may be gone when the run is cancelled.
    os.environ["PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS"] = "true"
    return run_id


def worker_environment(health_port: int) -> dict[str, str]:
    """The environment of a Prefect worker whose runs use this Python, and whose health page is on a loopback port."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    page = {"PREFECT_WORKER_WEBSERVER_HOST": HOST, "PREFECT_WORKER_WEBSERVER_PORT": str(health_port)}
    return {**os.environ, **page, "PATH": programs}


def activate(home: Path, *, quiet: bool = True) -> None:
    """Prepare this process's environment for the libraries. To be called before Prefect, Ray or MLflow is imported.

    Not `quiet`: the libraries log as they are configured to.
    """
    for name, value in {**(_QUIET if quiet else {}), **MLFLOW_RETRIES}.items():
        os.environ.setdefault(name, value)
    # Where the user has no home folder that can be written; the client needs none.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    if any(name not in os.environ for name in _SERVICES):
        stack = local_stack.load(home)
        if stack is not None:
            variables = stack.environment()
            # The keys of its steps are of no use at another store.
            if any(os.environ.get(name, variables.get(name)) != variables.get(name) for name in _OF_THE_STORE):
                del variables["IGPT_KEYS"]
            # Those of its models sign and vouch for no other server's.
            if os.environ.get("MLFLOW_TRACKING_URI", stack.mlflow_url) != stack.mlflow_url:
                del variables["IGPT_SIGNING_KEY"], variables["IGPT_TRUSTED_KEYS"]
            for name, value in variables.items():
                os.environ.setdefault(name, value)


def use(stack: local_stack.Stack) -> None:
    """Set this process's environment to local services, overriding what is set."""
    os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray prefers it to the token's file
    os.environ.update(stack.environment())
    forget_clients()  # clients that were made before have another address


def tracking_uri() -> str:
    """The address of the MLflow server. Raises IgptError if it is not set or carries a password."""
    return _address("MLFLOW_TRACKING_URI")


def prefect_api_url() -> str:
    """The address of the Prefect server. Raises IgptError if it is not set or carries a password."""
    return _address("PREFECT_API_URL")


def mlflow_database(home: Path) -> str | None:
    """The SQLAlchemy URL of the database behind MLflow, which only some jobs may reach; None: not known here."""
    if database := os.environ.get("MLFLOW_BACKEND_STORE_URI"):
        return database
    stack = local_stack.load(home)
    if stack is not None and os.environ.get("MLFLOW_TRACKING_URI") == stack.mlflow_url:
        return local_stack.mlflow_database(home)
    return None


def _address(name: str) -> str:
    address = os.environ.get(name)
    if not address:
        raise IgptError(
            f"no {_SERVICES[name].split(' ', 1)[1]} is known: start the services with `igpt up`, or set {name}"
        )
    if "@" in address:  # the address appears in logs, tags and links
        raise IgptError(f"{name} carries a password: leave it out there and set {_CREDENTIALS[name]} instead")
    return address


def load() -> Settings:
    """The addresses. Raises IgptError if one is not set or carries a password."""
    return Settings(
        prefect_api_url=_address("PREFECT_API_URL"),
        mlflow_tracking_uri=_address("MLFLOW_TRACKING_URI"),
        ray_address=_address("RAY_ADDRESS"),
    )
