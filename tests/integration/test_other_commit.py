"""A Ray node that runs another commit: commands say so in one line before they write, and its workers refuse work.

The node is a second one of the session's cluster, on the same machine, with a copy of the packages.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from flows.services.local_stack import Stack
from pipeline.store import objects
from tests.compatibility.earlier import FLAT
from tests.integration.conftest import ended, igpt, python, refresh_config
from tests.rigs.prefect_services import process_tree
from tests.rigs.waiting import wait_until

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
OTHER = "0123456789abcdef0123456789abcdef01234567"
ADDRESS = "127.0.0.2"
_SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_NODES = """
import sys, time
from ray._raylet import GcsClient
client, address, wanted = GcsClient(address=sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
for _ in range(600):
    alive = {node.node_manager_address for node in client.get_all_node_info(timeout=10).values() if node.state == 0}
    if (address in alive) == wanted:
        sys.exit()
    time.sleep(0.1)
sys.exit(f"{address} is among {alive}: {not wanted}")
"""


# The local services are a cluster of one node on loopback: Ray would refuse a second one, or seek the head elsewhere.
_START = f"""
import os, sys
os.environ["{_SEVERAL_NODES}"] = "1"
from ray._private import services
from ray.scripts.scripts import main
services.resolve_ip_for_localhost = lambda host: host
os.environ["{_SEVERAL_NODES}"] = "0"
main()
"""


@pytest.fixture(scope="module")
def other_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, of which one file differs."""
    folder = tmp_path_factory.mktemp("other")
    for package in ("pipeline", "igpt_model", "flows"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "pipeline" / "errors.py").open("a") as file:
        file.write("# changed\n")
    return folder


@contextmanager
def node(stack: Stack, *, cpus: int, **variables: str) -> Iterator[None]:
    """A second node of the cluster, with variables for its workers."""
    environment = {**os.environ, **stack.environment(), "RAY_USAGE_STATS_ENABLED": "0", **variables}
    del environment["RAY_ADDRESS"]
    command = [
        sys.executable, "-c", _START, "start", "--address", stack.ray_address, "--block",
        "--disable-usage-stats", "--node-ip-address", ADDRESS, "--num-cpus", str(cpus),
        "--object-store-memory", "80000000", "--min-worker-port", "0", "--max-worker-port", "0",
        "--dashboard-agent-listen-port", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd="/")
    try:
        wait_for_node(stack, True)
        yield
    finally:
        # The node's own process first: it says goodbye, so that the head does not wait for it.
        members = process_tree(psutil.Process(process.pid))
        for member in members:
            with suppress(psutil.Error):
                member.terminate()
        _, left = psutil.wait_procs(members, timeout=15)
        for member in left:
            member.kill()
        process.wait()
        wait_for_node(stack, False)


def wait_for_node(stack: Stack, alive: bool) -> None:
    command = [sys.executable, "-c", _NODES, stack.ray_address, ADDRESS, str(alive)]
    done = subprocess.run(
        command, env={**os.environ, **stack.environment()}, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr


def written() -> set[str]:
    return {file.url for bucket in ("datasets", "runs") for file in objects.list_files(f"s3://{bucket}")}


def test_a_command_says_so_in_one_line_and_writes_nothing(
    stack: Stack, digits: str, other_code: Path, tmp_path: Path
) -> None:
    config = tmp_path / "refresh.yaml"
    config.write_text(yaml.safe_dump(refresh_config(digits, "other-commit")))
    before = written()
    with node(stack, cpus=1, PYTHONPATH=str(other_code), IGPT_GIT_COMMIT=OTHER):
        refused = igpt("refresh", "--config", str(config))
        planned = igpt("dataset", "build", f"raw={digits}", "dataset=s3://datasets/other-commit", "--dry-run")
    assert written() == before
    assert MlflowClient(stack.mlflow_url).get_experiment_by_name("other-commit") is None
    for command in (refused, planned):
        assert (command.code, command.out) == (2, ""), command.err
        (line,) = [line for line in command.err.splitlines() if "Ray's node" in line]
        assert f"Ray's node {ADDRESS} runs 0.1.0 of commit {OTHER[:12]}" in line
        assert "has written nothing: bring both to one commit (infra/UPGRADE.md)" in line


LATER = """
import sys, time
from pathlib import Path
from flows.services import cluster, settings
from igpt_model.config import PretrainConfig
from igpt_model.training.ray import TrainJob, train_on_cluster
from pipeline.cluster import tasks
from pipeline.dataset import snapshot
from pipeline.errors import IgptError

folder, data, cpus = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
settings.activate(settings.default_home())
cluster.connect(settings.load().ray_address, "build")
(folder / "connected").touch()
while not (folder / "joined").exists():
    time.sleep(0.1)

def work():
    time.sleep(0.5)

config = PretrainConfig.from_fields(dataset=data, workers=1, cpus_per_worker=cpus, runs=str(folder / "runs"))
job = TrainJob(config=config, snapshot=snapshot.read(data), run=str(folder / "runs" / "one"), mlflow_run="")
for attempt in (lambda: list(tasks.map_tasks(work, [()] * 60)), lambda: train_on_cluster(job, None)):
    try:
        attempt()
        print("not refused")
    except IgptError as error:
        print(error)
"""


def test_workers_of_a_node_that_joins_later_refuse_their_work(stack: Stack, other_code: Path, tmp_path: Path) -> None:
    driver = python(LATER, str(tmp_path), str(FLAT / "dataset"), "16")
    wait_until(lambda: (tmp_path / "connected").exists() or driver.poll() is not None, seconds=120)
    with node(stack, cpus=16, PYTHONPATH=str(other_code)):
        (tmp_path / "joined").touch()
        done = ended(driver)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 2, done.out
    for line in lines:
        assert f"Ray's node {ADDRESS} runs" in line and "the driver" in line
    assert not (tmp_path / "runs" / "one" / "checkpoints").exists()
