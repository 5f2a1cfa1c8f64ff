"""The services at the configured addresses: do they answer, with which version and time. Nothing is judged here."""

import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flows.services import settings
from flows.services.process import shortened

_SECONDS = 10
_RAY_SECONDS = 60  # Ray's import is most of it
# Codes that say that the store is there and knows the keys, which may only list no buckets.
_KNOWN_TO_S3 = ("AccessDenied", "AllAccessDisabled")
# A process of its own: Ray reads its variables when it is imported, and writes to the terminal.
_ASK_RAY = """
import json, sys
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
nodes = [node for node in client.get_all_node_info(timeout=5).values() if node.state == 0]
known = get_cluster_metadata(client) or {}
print(json.dumps({"nodes": len(nodes), "version": known.get("ray_version"), "python": known.get("python_version")}))
"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of asking one service."""

    service: str
    """S3, Prefect, MLflow or Ray."""
    address: str
    """Empty where none is configured or it must not be shown."""
    complaint: str = ""
    """Why it cannot be used; empty when it answers."""
    version: str | None = None
    """The server's version, where it tells one; of S3 what the server calls itself."""
    client: str | None = None
    """The version of the client here, where the two have to fit."""
    python: str | None = None
    """The Python of Ray's nodes."""
    clock_ahead: float | None = None
    """By how many seconds its clock is ahead of this machine's; to a second or two."""


def ask_all() -> list[Answer]:
    """Ask S3, Prefect, MLflow and Ray where this process's settings say they are, all at once."""
    configured = settings.addresses()
    asking: tuple[tuple[str, Callable[[str], Answer]], ...] = (
        ("S3", _ask_s3),
        ("Prefect", _ask_prefect),
        ("MLflow", _ask_mlflow),
        ("Ray", _ask_ray),
    )
    with ThreadPoolExecutor(len(asking)) as threads:
        answers = [threads.submit(_ask, name, ask, configured) for name, ask in asking]
        return [answer.result() for answer in answers]


def _ask(service: str, ask: Callable[[str], Answer], configured: Mapping[str, str]) -> Answer:
    address = configured.get(service, "")
    if not address:
        return Answer(service=service, address="")
    if "@" in address:
        return Answer(service=service, address="", complaint="its address carries a password")
    return ask(address)


def _ask_s3(address: str) -> Answer:
    patience = Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1})
    known: dict[str, Any] = {"service": "S3", "address": address}
    try:
        client = boto3.client("s3", endpoint_url=None if address == settings.AMAZON else address, config=patience)
        told = client.list_buckets()
    except ClientError as error:
        told = error.response
        code = str(told.get("Error", {}).get("Code", "unknown"))
        if code not in _KNOWN_TO_S3:
            known["complaint"] = f"it refuses the request ({code})"
    except (BotoCoreError, ValueError) as error:
        return Answer(**known, complaint=shortened(f"it does not answer ({error})"))
    headers = told.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return Answer(**known, version=headers.get("server"), clock_ahead=_clock_ahead(headers.get("date")))


def _ask_prefect(address: str) -> Answer:
    client = metadata.version("prefect")
    return _ask_http("Prefect", address, "/admin/version", client, lambda body: str(json.loads(body)))


def _ask_mlflow(address: str) -> Answer:
    return _ask_http("MLflow", address, "/version", metadata.version("mlflow"), lambda body: body.decode().strip())


def _ask_http(service: str, address: str, path: str, client: str, read: Callable[[bytes], str]) -> Answer:
    known: dict[str, Any] = {"service": service, "address": address, "client": client}
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}{path}")  # ValueError: no URL
        credentials = settings.credentials(service)
        if credentials is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=_SECONDS) as told:
            return Answer(**known, version=read(told.read()), clock_ahead=_clock_ahead(told.headers["Date"]))
    except urllib.error.HTTPError as error:
        refused = error.code in (401, 403)
        what = f"refuses the credentials of {settings.CREDENTIALS[service]}" if refused else f"answers {error.code}"
        return Answer(**known, complaint=f"it {what}", clock_ahead=_clock_ahead(error.headers["Date"]))
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason: Any = getattr(error, "reason", error)
        text = getattr(reason, "strerror", None) or str(reason)
        return Answer(**known, complaint=f"it does not answer ({shortened(text)})")


def _ask_ray(address: str) -> Answer:
    known: dict[str, Any] = {"service": "Ray", "address": address, "client": metadata.version("ray")}
    command = [sys.executable, "-c", _ASK_RAY, address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_RAY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Answer(**known, complaint=f"it does not answer within {_RAY_SECONDS} s")
    if asked.returncode:
        if "Unauthenticated" in asked.stderr:
            return Answer(**known, complaint=f"it refuses the token of {settings.CREDENTIALS['Ray']}")
        lines = asked.stderr.strip().splitlines() or ["no reason given"]
        return Answer(**known, complaint=shortened(f"it does not answer ({lines[-1]})"))
    told = json.loads(asked.stdout.splitlines()[-1])
    complaint = "" if told["nodes"] else "it has no living node"
    return Answer(**known, complaint=complaint, version=told["version"], python=told["python"])


def _clock_ahead(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None
