"""A build that is interrupted and run again gives the bytes of an undisturbed one, and damages nothing."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from flows.services.local_stack import Stack
from pipeline.dataset import snapshot
from pipeline.inspect.verify import verify
from pipeline.store import objects
from tests.integration.conftest import python
from tests.rigs.warm_start import WarmProcess

pytestmark = [pytest.mark.services, pytest.mark.faults]

# Fifty shards, so that there is time between the first and the last.
FIELDS = {"resolution": 8, "colours": 16, "samples_per_shard": 8, "validation_fraction": 0.1, "test_fraction": 0.1}
# What the flow calls, without Prefect, which takes seconds to start; {patch} may make it die at some point.
_DRIVER = """
import json, os, signal, sys
from flows.services import settings
from pipeline.cluster import tasks
from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
tasks.connect(settings.load().ray_address, key=settings.store_key("build"))
try:
    build(DatasetConfig(**json.loads(sys.argv[1])))
except IgptError as error:
    sys.exit(f"igpt: {{error}}")
"""


def start(digits: str, name: str, patch: str = "", **fields: object) -> WarmProcess:
    """Build a dataset in a process of its own."""
    config = {"raw": digits, "dataset": f"s3://datasets/{name}", **FIELDS, **fields}
    return python(_DRIVER.format(patch=patch), json.dumps(config))


def end(process: WarmProcess) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def files_of(name: str) -> dict[str, bytes]:
    """The files of a dataset by path, without what says who works or worked on it, and when."""
    root = f"s3://datasets/{name}/"
    files = {file.url.removeprefix(root): file.url for file in objects.list_files(root.rstrip("/"))}
    passing = ("active/", "snapshots/000001.json.claims/", "records/000001.json")
    return {path: objects.read_bytes(url) for path, url in files.items() if not path.startswith(passing)}


@pytest.fixture(scope="module")
def undisturbed(digits: str) -> dict[str, bytes]:
    """The files of an undisturbed build."""
    code, said = end(start(digits, "undisturbed"))
    assert code == 0, said
    return files_of("undisturbed")


def wait_for(condition: Callable[[], bool], process: WarmProcess, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the build ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def shard_workers(stack: Stack) -> list[psutil.Process]:
    """The processes that are making a shard now."""
    workers = []
    for process in psutil.process_iter():
        try:
            making = process.cmdline()[:1] and process.cmdline()[0].startswith("ray::make_shard")
            if making and process.environ().get("RAY_AUTH_TOKEN_PATH") == str(stack.ray_token_path):
                workers.append(process)
        except psutil.Error:
            continue
    return workers


@pytest.mark.sample
def test_workers_killed_in_the_middle_of_a_shard(digits: str, stack: Stack, undisturbed: dict[str, bytes]) -> None:
    process = start(digits, "killed-workers")
    killed: list[psutil.Process] = []
    while len(killed) < 3:
        victims: list[psutil.Process] = []
        wait_for(lambda victims=victims: bool(victims.extend(shard_workers(stack)) or victims), process)
        with suppress(psutil.NoSuchProcess):  # it ended by itself, or is still listed after its death
            victims[0].kill()
            victims[0].wait(30)
            killed.append(victims[0])
    code, said = end(process)  # Ray reports every lost worker
    assert code == 0, said
    assert files_of("killed-workers") == undisturbed


DEATHS = {
    "before the last shard": """
from pipeline.cluster import tasks
map_tasks, done = tasks.map_tasks, []
def counted(function, calls, **options):
    for result in map_tasks(function, calls, **options):
        if function.__name__ == "make_shard" and len(done) == 30:
            die()
        done.append(result)
        yield result
tasks.map_tasks = counted
""",
    "after the last shard": "import pipeline.build.build\npipeline.build.build.check_counts = die\n",
    "before the manifest": "import pipeline.dataset.publish\npipeline.dataset.publish.create_bytes = die\n",
    "while it creates the manifest": """
from pipeline.store import conditional_create
create = conditional_create._create_while_claimed
def create_or_die(url, *arguments):
    if url.endswith("000001.json"):
        die()
    create(url, *arguments)
conditional_create._create_while_claimed = create_or_die
""",
    "before LATEST": "import pipeline.dataset.publish\npipeline.dataset.publish._point_latest = die\n",
}
_SAMPLE = "while it creates the manifest"


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=[pytest.mark.sample] if place == _SAMPLE else []) for place in DEATHS]
)
def test_the_driver_killed_and_the_same_command_again(place: str, digits: str, undisturbed: dict[str, bytes]) -> None:
    name = "killed-" + place.replace(" ", "-")
    code, said = end(start(digits, name, DEATHS[place]))
    assert code == -signal.SIGKILL, said
    assert not objects.exists(f"s3://datasets/{name}/LATEST")
    assert objects.exists(f"s3://datasets/{name}/snapshots/000001.json") == (place == "before LATEST")
    assert end(start(digits, name)) == (0, "")
    assert files_of(name) == undisturbed


def test_two_builders_of_the_same_end_with_the_same(digits: str, undisturbed: dict[str, bytes]) -> None:
    processes = [start(digits, "two-alike") for _ in range(2)]
    assert [end(process) for process in processes] == [(0, "")] * 2
    assert files_of("two-alike") == undisturbed


def test_of_two_builders_of_different_things_one_wins_and_nothing_is_damaged(digits: str) -> None:
    processes = [start(digits, "two-different", resolution=side, samples_per_shard=40) for side in (4, 8)]
    ended = [end(process) for process in processes]
    codes = sorted(code for code, _ in ended)
    assert codes in ([0, 1], [0, 0]), ended
    chosen = snapshot.read("s3://datasets/two-different")
    assert verify(chosen) == []
    if codes == [0, 1]:
        (line,) = [said.strip() for code, said in ended if code == 1]
        assert "another build published snapshot 1 meanwhile; run this one again" in line
        assert chosen.number == 1
    else:  # the slower one started after the faster one had published, and continued from there
        assert (chosen.number, chosen.parent) == (2, 1)
