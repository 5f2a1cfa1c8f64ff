"""What keeps a worker polling: it starts it again, counts the runs that an earlier worker left, and passes SIGTERM on.

The worker is Prefect's own, without a server, so it ends soon. tests/integration/test_scheduled.py has one with runs.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.prefect_ops.polling import Keeper, served_health
from flows.services.ports import HOST, free_port
from tests.rigs.prefect_services import kill_family
from tests.rigs.waiting import wait_until

ROOT = Path(__file__).parents[3]
ADOPTS = pytest.mark.skipif(sys.platform != "linux", reason="platform: only Linux lets a process adopt descendants")
# A child that leaves a process behind, as a worker that ends leaves a driver, and a keeper that finds it.
LEAVES_A_DRIVER = """
import subprocess, sys, threading
from flows.prefect_ops import polling
polling._adopt_descendants()
child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]])"
subprocess.run([sys.executable, "-c", child, polling._DRIVER], check=True)
ended = threading.Event()
import signal
signal.signal(signal.SIGTERM, lambda *_: ended.set())
polling.Keeper(pool="tried", limit=int(sys.argv[1]), say=lambda line: print(line, flush=True)).keep(ended)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Names a server that does not answer, so that the worker ends at once."""
    return {
        **os.environ,
        "PREFECT_API_URL": f"http://{HOST}:{free_port()}/api",
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_CLIENT_MAX_RETRIES": "0",
        "PREFECT_WORKER_QUERY_SECONDS": "0.05",
    }


@pytest.fixture
def keeper(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", LEAVES_A_DRIVER, str(request.param)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    yield process
    kill_family(process)
    assert process.stdout is not None
    process.stdout.close()


def children(process: subprocess.Popen[bytes]) -> list[tuple[psutil.Process, list[str]]]:
    """Live children with their command lines."""
    known = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):
            known.append((child, child.cmdline()))
    return known


def left_behind(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child, command in children(process) if command[-1:] == ["flows.prefect_ops.driver"]]


def workers(process: subprocess.Popen[bytes]) -> list[tuple[psutil.Process, list[str]]]:
    return [(child, command) for child, command in children(process) if command[2:5] == ["prefect", "worker", "start"]]


@ADOPTS
@pytest.mark.parametrize("keeper", [1], indirect=True)
def test_a_worker_waits_for_the_place_of_a_run_that_was_left_and_sigterm_reaches_the_run(
    keeper: subprocess.Popen[bytes],
) -> None:
    wait_until(lambda: left_behind(keeper))
    (run,) = left_behind(keeper)
    time.sleep(5)
    assert not workers(keeper), "the limit is 1"
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(60) == 0
    assert not run.is_running()


@ADOPTS
@pytest.mark.parametrize("keeper", [3], indirect=True)
def test_a_worker_that_ends_is_started_again_with_the_places_that_are_free(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdout is not None
    wait_until(lambda: workers(keeper))
    ((worker, command),) = workers(keeper)
    assert "--limit=2" in command and "--pool=tried" in command
    worker.kill()
    lines = iter(keeper.stdout.readline, b"")
    assert next(line for line in lines if b"is started again" in line)
    wait_until(lambda: workers(keeper))
    assert left_behind(keeper), "the run goes on"


def test_the_health_page_answers_for_the_loop_and_not_for_the_server() -> None:
    keeper, port = Keeper(pool="tried", limit=1, say=print), free_port()
    with served_health(keeper, HOST, port):
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=10) as page:
            assert page.status == 200
        keeper._last_turn -= 61
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=10)
