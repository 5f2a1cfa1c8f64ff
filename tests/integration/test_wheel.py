"""A build with the installed wheel: neither the command line nor Ray's workers have the checkout on their path."""

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.services.local_stack import Stack
from flows.services.ports import HOST, free_port
from tests.rigs.environments import ROOT, variables
from tests.rigs.prefect_services import kill_family
from tests.rigs.s3_server import launch_here

pytestmark = pytest.mark.services


@pytest.fixture
def environment(stack: Stack, wheel_programs: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of the command line: the session's Prefect and MLflow, and a Ray cluster with the wheel."""
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="igpt-ray-", dir="/tmp"))  # short, for Ray's sockets
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    told = {**stack.environment(), **variables(wheel_programs, tmp_path), **ray}
    del told["RAY_ADDRESS"]
    command = [
        *(str(wheel_programs / "python"), "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", HOST, "--port", str(port), "--temp-dir", str(folder), "--num-cpus", "2"),
        *("--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"),
        *("--include-dashboard", "false", "--no-monitor", "--object-store-memory", "100000000"),
        *("--ray-client-server-port", str(free_port())),
    ]
    log = tmp_path / "ray.log"
    head = launch_here(command, told, log)
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield {**told, "RAY_ADDRESS": f"{HOST}:{port}"}
    finally:
        kill_family(head)
        shutil.rmtree(folder, ignore_errors=True)


def test_it_builds_a_dataset(
    environment: dict[str, str], wheel_programs: Path, image_folder: Path, tmp_path: Path
) -> None:
    fields = (f"raw={image_folder}", "dataset=dataset", "resolution=8", "colours=16", "samples_per_shard=40")
    done = subprocess.run(
        [str(wheel_programs / "igpt"), "dataset", "build", "--json", *fields],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = json.loads(done.stdout)
    assert (built["snapshot"], built["images"], built["rejected"]) == (1, 100, {})
    assert len(list((tmp_path / "dataset" / "shards").iterdir())) == built["shards"] >= 3
    assert str(ROOT) not in done.stderr
