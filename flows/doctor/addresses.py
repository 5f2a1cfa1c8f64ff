"""Query the services at the configured addresses for version and time. verdicts.py judges the results."""

import base64
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flows.services import settings
from flows.services.process import shortened
from pipeline.errors import IgptError

_SECONDS = 10
_RAY_SECONDS = 60  # mostly for Ray's import
# Error codes of a store that accepts the credentials, which are just not allowed to list buckets.
_ACCEPTED_BY_S3 = ("AccessDenied", "AllAccessDisabled")
# Run in its own process: Ray reads its variables when it is imported, and writes to the terminal.
_QUERY_RAY = """
import json, sys
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
nodes = [node for node in client.get_all_node_info(timeout=5).values() if node.state == 0]
cluster = get_cluster_metadata(client) or {}
print(json.dumps({"nodes": len(nodes), "version": cluster.get("ray_version"), "python": cluster.get("python_version")}))
"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of querying one service."""

    service: str
    """S3, Prefect, MLflow or Ray."""
    address: str
    """Empty if none is configured, or if it must not be shown."""
    problem: str = ""
    """Why it cannot be used; empty if it answers."""
    keys_by_step: bool = True
    """Whether each step of a flow has a key of its own, for S3."""
    signs_models: bool = True
    """Whether this machine has a key that signs models and trusts one, for MLflow."""
    version: str | None = None
    """The server's version if it is known; for S3, the Server header."""
    client: str | None = None
    """The version of the client here, if it must match the server's."""
    python: str | None = None
    """The Python version of Ray's nodes."""
    clock_ahead: float | None = None
    """Seconds by which its clock is ahead of this machine's, accurate to a second or two."""


def ask_all() -> list[Answer]:
    """Query S3, Prefect, MLflow and Ray at the addresses of this process's settings, in parallel."""
    configured = settings.addresses()
    queries: tuple[tuple[str, Callable[[str], Answer]], ...] = (
        ("S3", _ask_s3),
        ("Prefect", _ask_prefect),
        ("MLflow", _ask_mlflow),
        ("Ray", _ask_ray),
    )
    with ThreadPoolExecutor(len(queries)) as threads:
        answers = [threads.submit(_ask, service, query, configured) for service, query in queries]
        return [answer.result() for answer in answers]


def _ask(service: str, query: Callable[[str], Answer], configured: Mapping[str, str]) -> Answer:
    address = configured.get(service, "")
    if not address:
        return Answer(service=service, address="")
    if "@" in address:
        return Answer(service=service, address="", problem="its address carries a password")
    return query(address)


def _ask_s3(address: str) -> Answer:
    timeouts = Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1})
    fields: dict[str, Any] = {"service": "S3", "address": address}
    try:
        fields["keys_by_step"] = settings.keys_by_step()
        client = boto3.client("s3", endpoint_url=None if address == settings.AMAZON else address, config=timeouts)
        response = client.list_buckets()
    except IgptError as error:
        return Answer(**fields, problem=str(error))
    except ClientError as error:
        response = error.response
        code = str(response.get("Error", {}).get("Code", "unknown"))
        if code not in _ACCEPTED_BY_S3:
            fields["problem"] = f"it refuses the request ({code})"
    except (BotoCoreError, ValueError) as error:
        return Answer(**fields, problem=shortened(f"it does not answer ({error})"))
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return Answer(**fields, version=headers.get("server"), clock_ahead=_clock_ahead(headers.get("date")))


def _ask_prefect(address: str) -> Answer:
    client = metadata.version("prefect")
    return _ask_http("Prefect", address, "/admin/version", client, lambda body: str(json.loads(body)))


def _ask_mlflow(address: str) -> Answer:
    answer = _ask_http("MLflow", address, "/version", metadata.version("mlflow"), lambda body: body.decode().strip())
    return replace(answer, signs_models=None not in (settings.signing_key(), settings.trusted_keys()))


def _ask_http(service: str, address: str, path: str, client: str, read: Callable[[bytes], str]) -> Answer:
    fields: dict[str, Any] = {"service": service, "address": address, "client": client}
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}{path}")  # ValueError if it is not a URL
        credentials = settings.credentials(service)
        if credentials is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return Answer(**fields, version=read(response.read()), clock_ahead=_clock_ahead(response.headers["Date"]))
    except urllib.error.HTTPError as error:
        problem = f"it answers with HTTP status {error.code}"
        if error.code in (401, 403):
            problem = f"it refuses the credentials of {settings.CREDENTIALS[service]}"
        return Answer(**fields, problem=problem, clock_ahead=_clock_ahead(error.headers["Date"]))
    except (http.client.HTTPException, OSError, ValueError) as error:
        reason: Any = getattr(error, "reason", error)
        text = getattr(reason, "strerror", None) or str(reason)
        return Answer(**fields, problem=f"it does not answer ({shortened(text)})")


def _ask_ray(address: str) -> Answer:
    fields: dict[str, Any] = {"service": "Ray", "address": address, "client": metadata.version("ray")}
    command = [sys.executable, "-c", _QUERY_RAY, address]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_RAY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Answer(**fields, problem=f"it does not answer within {_RAY_SECONDS} s")
    if result.returncode:
        if "Unauthenticated" in result.stderr:
            return Answer(**fields, problem=f"it refuses the token of {settings.CREDENTIALS['Ray']}")
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        return Answer(**fields, problem=shortened(f"it does not answer ({lines[-1]})"))
    cluster = json.loads(result.stdout.splitlines()[-1])
    problem = "" if cluster["nodes"] else "it has no node alive"
    return Answer(**fields, problem=problem, version=cluster["version"], python=cluster["python"])


def _clock_ahead(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None
