"""The local services, started once per session, and a small refresh that several modules check."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from sklearn.datasets import load_digits

from flows.services import local_stack, settings
from flows.services.local_stack import Stack
from pipeline.store import credentials, objects
from tests.conftest import Command
from tests.rigs.databases import with_databases
from tests.rigs.warm_start import WarmProcess, WarmStart

IGPT = [sys.executable, "-m", "flows.cli"]
ROOT = Path(__file__).parent.parent.parent


_warm = WarmStart(ROOT)


def igpt(*arguments: str, environment: dict[str, str] | None = None, seconds: int = 500) -> Command:
    """Run the command line in a process of its own, with the session's services.

    It is forked from a process that has the libraries imported. With variables of an `environment` that libraries read
    when they are imported, a new Python process is started.
    """
    if all(name.startswith(("AWS_", "MLFLOW_")) for name in environment or {}):
        return ended(_warm.command(*arguments, variables=environment), seconds)
    done = subprocess.run(
        [*IGPT, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        timeout=seconds,
        check=False,
    )
    return Command(code=done.returncode, out=done.stdout, err=done.stderr)


def ended(process: WarmProcess, seconds: int = 500) -> Command:
    """Wait for a command to end; returns its exit code and output."""
    out, err = process.communicate(timeout=seconds)
    return Command(code=process.wait(), out=out, err=err)


def python(code: str, *arguments: str) -> WarmProcess:
    """Start Python code in a forked process, with the session's services and the libraries imported."""
    return _warm.program(code, *arguments)


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="igpt-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def forget_store_clients() -> None:
    """Let MLflow's client in this process take the key of the object store from the environment anew."""
    import boto3  # with MLflow three seconds, which not all modules need
    from mlflow.store.artifact import s3_artifact_repo

    boto3.DEFAULT_SESSION = None
    s3_artifact_repo._cached_get_s3_client.cache_clear()


@pytest.fixture(scope="session")
def stack(home: Path) -> Iterator[Stack]:
    """S3, Prefect, MLflow and Ray; the environment of this process and its children points at them.

    Only the children get Ray's address and token, through IGPT_HOME: other modules start a Ray in this process.
    """
    before = dict(os.environ)
    databases = [home / "prefect" / "prefect.db", home / "mlflow" / "mlflow.db"]
    started = with_databases("stack", databases, lambda: local_stack.up(home))
    os.environ["IGPT_HOME"] = str(home)
    settings.activate(home)
    settings.use(started)
    forget_store_clients()  # test_backup.py has a store of its own
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    try:
        with _warm:
            yield started
    finally:
        local_stack.down(home)
        os.environ.clear()
        os.environ.update(before)
        credentials.forget_clients()


@pytest.fixture(scope="session")
def digits(stack: Stack) -> str:
    """400 handwritten digits as PNG files in the bucket, and two objects that are not digits."""
    from flows.demo import encode_digits

    url = "s3://raw/some-digits"
    files = dict(list(encode_digits(url).items())[:400])
    assert len(files) == 400
    assert load_digits().images.shape[0] == 1797
    objects.write_many({**files, f"{url}/0/cut.png": next(iter(files.values()))[:60], f"{url}/README.txt": b"not one"})
    return url


def refresh_config(digits: str, name: str) -> dict:
    """The config of a refresh small enough for a test: 8x8 pixels, sixteen grey levels."""
    return {
        "dataset": {
            "raw": digits,
            "dataset": f"s3://datasets/{name}",
            "resolution": 8,
            "colours": 16,
            "samples_per_shard": 100,
            "validation_fraction": 0.15,
            "test_fraction": 0.2,
        },
        "pretrain": {
            "runs": f"s3://runs/{name}",
            "preset": "tiny",
            "layers": 2,
            "steps": 160,
            "global_batch": 64,  # so large that a test has a second or two to kill a worker between two checkpoints
            "warmup_steps": 10,
            "checkpoint_every": 40,
            "evaluate_every": 80,
            "experiment": name,
            "model_name": name,
        },
        "probe": {"strengths": [0.01, 0.1]},
        "promotion": {"max_bits_per_pixel": 4.0},
    }


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """A refresh that the command line has run."""

    config: dict
    path: Path
    command: Command
    run: str
    """The training run's folder."""
    result: dict
    """Its result.json."""


@pytest.fixture(scope="session")
def refreshed(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Refreshed:
    """The whole refresh on 401 images, run once."""
    config = refresh_config(digits, "refreshed")
    config["pretrain"]["keep_every"] = 80
    config["pretrain"]["sample_every"] = 80  # so that its report has a picture that moves
    path = tmp_path_factory.mktemp("config") / "refresh.yaml"
    path.write_text(yaml.safe_dump(config))
    command = igpt("refresh", "--config", str(path))
    assert command.code == 0, command.out + command.err
    (result,) = [file.url for file in objects.list_files("s3://runs/refreshed") if file.url.endswith("result.json")]
    return Refreshed(
        config=config,
        path=path,
        command=command,
        run=result.removesuffix("/result.json"),
        result=json.loads(objects.read_bytes(result)),
    )
