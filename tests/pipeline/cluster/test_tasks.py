"""Tasks on a real Ray cluster: a bounded number in flight, every result once, lost tasks are retried."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import ray

from pipeline.build import build
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.store.credentials import StoreKey
from tests.conftest import run_here

pytestmark = pytest.mark.usefixtures("own_ray")


@pytest.fixture(scope="module")
def config(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    return DatasetConfig(
        raw=str(image_folder),
        dataset=str(tmp_path_factory.mktemp("ray") / "dataset"),
        resolution=16,
        colours=24,
        samples_per_shard=20,
        validation_fraction=0.15,
        test_fraction=0.1,
    )


def test_tasks_build_what_one_process_builds(config: DatasetConfig, tmp_path: Path) -> None:
    on_cluster = build.build(config)
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        here = build.build(replace(config, dataset=str(tmp_path / "here")))
    assert here.snapshot.manifest_digest == on_cluster.snapshot.manifest_digest


def test_a_preprocessing_worker_stays_small(config: DatasetConfig) -> None:
    build.build(config)  # so that the workers have done each kind of task

    def loaded() -> set[str]:
        return {name.split(".")[0] for name in sys.modules}

    for _, names in tasks.map_tasks(loaded, [()] * 4):
        assert "pipeline" in names
        assert not names & {"torch", "mlflow", "prefect", "sklearn"}


def test_tasks_in_flight_are_bounded_and_every_call_has_its_result() -> None:
    begun = 0

    def calls() -> Iterator[tuple[int]]:
        nonlocal begun
        for number in range(20):
            begun += 1
            yield (number,)

    results = {}
    for ended, (number, result) in enumerate(tasks.map_tasks(lambda a, b: a * b, calls(), shared=(10,))):
        assert begun - ended <= 4  # two CPUs, and as many again
        results[number] = result
    assert results == {number: 10 * number for number in range(20)}


def test_tasks_in_flight_follow_nodes_that_join_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_CHECK_SECONDS", 0.2)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=4", "--block"]
    node: subprocess.Popen[bytes] | None = None
    begun, deadline, most_in_flight, left = 0, time.monotonic() + 150, [0, 0], False

    def calls() -> Iterator[tuple[int]]:
        nonlocal begun
        while not left:
            assert time.monotonic() < deadline, f"at most {most_in_flight} in flight before and after the node came"
            begun += 1
            yield (begun,)

    def slow(number: int) -> int:
        time.sleep(0.1)
        return number

    results: list[int] = []
    try:
        for _, result in tasks.map_tasks(slow, calls()):
            results.append(result)
            in_flight = begun - len(results)
            most_in_flight[node is not None] = max(most_in_flight[node is not None], in_flight)
            if node is None and len(results) == 12:
                node = subprocess.Popen(
                    [*command, "--object-store-memory=100000000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            elif node is not None and node.poll() is None and in_flight >= 11:  # six CPUs, and as many again
                node.terminate()
                node.wait(30)
            elif node is not None and node.poll() is not None and in_flight <= 3:
                left = True
    finally:
        if node is not None and node.poll() is None:
            node.kill()
    assert most_in_flight[0] <= 4 and most_in_flight[1] <= 12
    assert left and sorted(results) == list(range(1, begun + 1)), "each call has its result, once"


def test_tasks_use_the_key_of_their_step_in_processes_of_their_own() -> None:
    def seen() -> tuple[int, str | None, list[str]]:
        text = Path("/proc/self/environ").read_text() if sys.platform == "linux" else ""
        return os.getpid(), os.environ.get("AWS_ACCESS_KEY_ID"), re.findall(r"secret of \w+", text)

    def ask(key: StoreKey | None) -> list[tuple[int, str | None, list[str]]]:
        tasks.connect("connected already", key=key)
        return [result for _, result in tasks.map_tasks(seen, [()] * 4)]

    keys = [StoreKey(role=role, access_key=role, secret_key=f"secret of {role}") for role in ("build", "train")]
    processes: dict[str | None, set[int]] = {}
    try:
        for key in [*keys, *keys, None]:
            of_node = os.environ.get("AWS_ACCESS_KEY_ID")
            for pid, access_key, secrets in ask(key):
                assert access_key == (of_node if key is None else key.role)
                assert not secrets, "other processes of its user would read it there"
                processes.setdefault(access_key, set()).add(pid)
    finally:
        tasks.connect("connected already")
    assert sum(map(len, processes.values())) == len(set.union(*processes.values()))


def test_an_error_for_the_user_is_not_wrapped() -> None:
    def refuse(number: int) -> None:
        raise IgptError(f"{number} is refused")

    with pytest.raises(IgptError) as raised:
        list(tasks.map_tasks(refuse, [(7,)]))
    assert type(raised.value) is IgptError
    assert str(raised.value) == "7 is refused"


def test_a_failing_task_leaves_the_driver_and_the_cluster_alive() -> None:
    def fail_at_nine(number: int) -> int:
        time.sleep(0.002 * (number % 5))  # so that neighbours end at the time of the failure
        if number == 9:
            raise IgptError("nine is refused")
        return number

    for _ in range(20):
        with pytest.raises(IgptError, match="nine is refused"):
            list(tasks.map_tasks(fail_at_nine, [(number,) for number in range(40)]))
    assert len(list(tasks.map_tasks(fail_at_nine, [(number,) for number in range(9)]))) == 9


MESSAGE = """
import logging, sys, threading
import ray
from ray._private.utils import publish_error_to_driver
from pipeline.cluster import tasks
tasks.connect(sys.argv[1])
logged = threading.Event()
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
logging.getLogger("pipeline.cluster.tasks").addFilter(lambda r: logged.set() or True if "last" in r.args[0] else True)
for message in ("eight processes\\nare starting", "eight processes\\nare starting", "the last"):
    publish_error_to_driver("worker_pool", message, ray._private.worker.global_worker.gcs_client)
assert logged.wait(30)
print('{"output": "of the command"}')
"""


def test_messages_of_the_cluster_stay_out_of_a_commands_output() -> None:
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run([sys.executable, "-c", MESSAGE, address], capture_output=True, text=True, check=True)
    assert done.stdout == '{"output": "of the command"}\n'
    assert [line for line in done.stderr.splitlines() if "Ray: " in line] == [
        "INFO Ray: eight processes",
        "INFO Ray: the last",
    ]


def test_a_task_that_loses_its_worker_is_run_again(tmp_path: Path) -> None:
    def die_once(number: int) -> int:
        marker = tmp_path / str(number)
        if number == 2 and not marker.exists():
            marker.touch()
            os._exit(1)
        return number

    assert sorted(tasks.map_tasks(die_once, [(number,) for number in range(4)])) == [(n, n) for n in range(4)]
    assert (tmp_path / "2").exists()


def test_after_a_crash_the_changed_call_is_retried() -> None:
    def die_unless(careful: bool) -> bool:
        if not careful:
            os._exit(1)
        return careful

    results = tasks.map_tasks(die_unless, [(False,)], after_crash=lambda call: (True,))
    assert list(results) == [(0, True)]


def test_a_task_that_always_loses_its_worker_gives_up_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TASK_RETRIES", 5)
    with pytest.raises(IgptError, match=r"a task was lost 6 times \(WorkerCrashed\)") as raised:
        list(tasks.map_tasks(lambda: os._exit(1), [()]))
    assert "\n" not in str(raised.value)


def test_a_task_on_a_node_that_disappeared_is_started_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([{"one": 2.0, "two": 2.0}])
    monkeypatch.setattr(tasks, "_alive_nodes", lambda: next(looks, {"one": 2.0}))
    monkeypatch.setattr(tasks, "_CHECK_SECONDS", 0.2)
    monkeypatch.setattr(tasks, "_GRACE_SECONDS", 0.5)

    def silent_once(number: int) -> int:
        marker = tmp_path / str(number)
        if number == 2 and not marker.exists():
            marker.touch()
            time.sleep(120)
        time.sleep(0.1)
        return number

    began = time.monotonic()
    results = list(tasks.map_tasks(silent_once, [(number,) for number in range(30)]))
    assert sorted(results) == [(n, n) for n in range(30)]
    assert time.monotonic() - began < 60
