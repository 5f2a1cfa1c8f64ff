"""A service of `igpt serve`, of two replicas, later of one: MLflow's answers, batches, a full queue, versions, loss."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from mlflow.pyfunc import scoring_server

from flows.services.local_stack import Stack
from flows.services.ports import HOST, free_port, is_free
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.registry.client import CANDIDATE, Version
from igpt_model.registry.register import register
from pipeline.store import objects
from tests.igpt_model.registry.test_serving import make_head
from tests.igpt_model.registry.test_short_answers import FILES, JSON, LARGE, PIXELS, TEXTS, parquet_of
from tests.infra.kubernetes_objects import rendered_object
from tests.integration.conftest import IGPT, ROOT, igpt
from tests.integration.test_scheduled import ray_processes
from tests.rigs.waiting import wait_until

pytestmark = pytest.mark.services

NAME = "served"


def registered(url: str, seed: int) -> Version:
    """A small model with a probe as a new version, which becomes the candidate."""
    torch.manual_seed(seed)
    model = ImageGPT(ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    colours = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(NAME)
    number = client.create_experiment(NAME) if experiment is None else experiment.experiment_id
    return register(
        ModelBundle(model=model, palette_K3=colours, classes=("a", "b", "c")),
        name=NAME,
        tracking_uri=url,
        run_id=client.create_run(number).info.run_id,
        tags={},
        best_layer=1,
        head=make_head(),
    )


class Command:
    """`igpt serve`, with what it prints."""

    def __init__(self, port: int, log: Path, *, replicas: int) -> None:
        self._log = log
        options = ("--port", str(port), "--replicas", str(replicas), "--cpus", "0.5", "--every", "0.5", "--batch", "8")
        with log.open("wb") as file, self._errors().open("wb") as errors:
            self.process = subprocess.Popen(
                [*IGPT, "serve", f"{NAME}@{CANDIDATE}", *options, "--queue", "16"],
                cwd=ROOT,
                stdout=file,
                stderr=errors,
            )

    def _errors(self) -> Path:
        return self._log.with_suffix(".errors")

    def said(self) -> str:
        return self._log.read_text() + self.complained()

    def complained(self) -> str:
        """What it wrote to standard error."""
        return self._errors().read_text()

    def says(self, line: str) -> None:
        """Wait for a line."""
        wait_until(lambda: line in self.said() or self.process.poll() is not None, seconds=300, said=self.said)
        assert line in self.said(), self.said()


@pytest.fixture(scope="module")
def first(stack: Stack) -> Version:
    return registered(stack.mlflow_url, 1)


@pytest.fixture(scope="module")
def port(stack: Stack) -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(first: Version, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Command]]:
    """The running command, the last one of the list."""
    folder = tmp_path_factory.mktemp("service")
    commands = [Command(port, folder / "first.log", replicas=2)]
    try:
        commands[0].says(f"{first.uri} is served")
        yield commands
    finally:
        for command in commands:  # what a test has not ended
            command.process.terminate()
            command.process.wait(120)


@pytest.fixture(scope="module")
def url(service: list[Command], port: int) -> str:
    return f"http://{HOST}:{port}"


@pytest.fixture(scope="module")
def mlflows(first: Version) -> TestClient:
    """MLflow's server with the first version."""
    return TestClient(scoring_server.init(mlflow.pyfunc.load_model(first.uri)), raise_server_exceptions=False)


def ask(url: str, body: Any = None, kind: str = JSON, path: str = "/invocations") -> tuple[int, str, str | None]:
    """Status, answer and Retry-After."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=200) as answer:
            return answer.status, answer.read().decode(), None
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers.get("Retry-After")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"inputs": TEXTS}, JSON),
        ({"inputs": PIXELS.tolist()}, JSON),
        ({"instances": TEXTS[0]}, JSON),
        ({"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS], "index": [5, 3]}}, JSON),
        ({"inputs": TEXTS, "params": {"all_layers": True}}, JSON),
        ({"inputs": TEXTS, "params": {"task": "classify"}}, JSON),
        ({"inputs": TEXTS, "params": {"task": "score"}}, JSON),
        ({"inputs": TEXTS, "params": {"task": "complete", "samples": 2, "rows": 3}}, JSON),
        ({"inputs": [], "params": {"task": "sample", "samples": 2, "seed": 4}}, JSON),
        ({"inputs": TEXTS, "params": None}, JSON),
        (("image\n" + "\n".join(TEXTS)).encode(), "text/csv"),
        (parquet_of(image=FILES), "application/vnd.apache.parquet"),
    ],
)
def test_answers_are_those_of_mlflows_server(body: Any, kind: str, url: str, mlflows: TestClient) -> None:
    status, answer, _ = ask(url, body, kind)
    expected = both(mlflows, body, kind)
    assert (status, expected.status_code) == (200, 200), answer[:500]
    ours, theirs = json.loads(answer)["predictions"], expected.json()["predictions"]
    if isinstance(theirs[0], dict):
        assert [list(row) for row in ours] == [list(row) for row in theirs]
        ours, theirs = ([list(row.values()) for row in rows] for rows in (ours, theirs))
    assert np.array(ours) == pytest.approx(np.array(theirs), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        ({"inputs": [LARGE]}, JSON, 400),
        ({"inputs": [TEXTS[0], "not an image"]}, JSON, 400),
        ({"inputs": []}, JSON, 400),
        ({}, JSON, 400),
        (b"[1, 2]", JSON, 400),
        (b"\xff" * 1_000_000, JSON, 400),
        ({"inputs": TEXTS, "params": {"task": "bogus"}}, JSON, 400),
        ({"inputs": TEXTS, "params": {"task": "sample", "samples": 0}}, JSON, 400),
        ({"inputs": TEXTS, "params": {"layer": 99}}, JSON, 400),
        ({"inputs": TEXTS, "params": {"temperature": "hot"}}, JSON, 400),
        ({"inputs": TEXTS, "params": {"task": "upscale"}}, JSON, 400),
        ({"inputs": TEXTS}, "text/html", 415),
    ],
)
def test_refusals_are_those_of_mlflows_server(body: Any, kind: str, code: int, url: str, mlflows: TestClient) -> None:
    status, answer, _ = ask(url, body, kind)
    expected = both(mlflows, body, kind)
    assert status == expected.status_code
    words, theirs = (sorted(re.findall(r"\w+", text)) for text in (answer, expected.text))
    assert words == theirs  # sorted, because MLflow prints a set
    assert status == code and len(answer) < 10_000
    assert "\n" not in (json.loads(answer)["message"] if code == 400 else answer)


def both(mlflows: TestClient, body: Any, kind: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return mlflows.post("/invocations", content=content, headers={"Content-Type": kind})


@pytest.mark.parametrize("path", ["/ping", "/health", "/version", "/-/healthz"])
def test_it_says_that_it_is_well(path: str, url: str, mlflows: TestClient) -> None:
    status, answer, _ = ask(url, path=path)
    assert status == 200
    assert answer == ("success" if path == "/-/healthz" else mlflows.get(path).text)


def test_requests_at_a_time_share_passes_and_get_their_own_answers(url: str, service: list[Command]) -> None:
    alone = [json.loads(ask(url, {"inputs": [text]})[1])["predictions"][0] for text in TEXTS]
    assert alone[0] != pytest.approx(alone[1], abs=1e-3)
    wrong = {"inputs": ["not an image"]}
    bodies = [{"inputs": [TEXTS[number % 2]]} if number % 10 else wrong for number in range(200)]
    with ThreadPoolExecutor(12) as clients:  # no more than may wait, so none is refused
        answers = list(clients.map(lambda body: ask(url, body), bodies))
    for number, (status, answer, _) in enumerate(answers):
        assert status == (200 if number % 10 else 400)
        if number % 10:
            assert json.loads(answer)["predictions"][0] == pytest.approx(alone[number % 2], abs=1e-5)

    def passes(largest: str) -> dict[str, float]:
        """The passes of at most so many images, by replica."""
        (metrics,) = re.findall(r"metrics at (\S+)", service[0].said())
        with urllib.request.urlopen(metrics, timeout=60) as page:
            lines = page.read().decode().splitlines()
        wanted = ("ray_igpt_serve_batch_images_bucket", 'task="features"', f'le="{largest}"')
        lines = [line for line in lines if all(word in line for word in wanted)]
        return {re.findall(r'replica="([^"]+)"', line)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    # Both replicas have made passes of more images than any request has.
    wait_until(lambda: len(passes("+Inf")) == 2 and all(passes("+Inf")[key] > n for key, n in passes("2.0").items()))


def test_a_full_service_refuses_and_says_when_to_come_again(url: str) -> None:
    body = {"inputs": TEXTS, "params": {"task": "complete", "samples": 8, "rows": 0}}
    with ThreadPoolExecutor(90) as clients:
        answers = list(
            clients.map(lambda seed: ask(url, {**body, "params": {**body["params"], "seed": seed}}), range(90))
        )
    counted = Counter((status, retry) for status, _, retry in answers)
    assert set(counted) == {(200, None), (503, "1")}, counted
    assert counted[200, None] >= 32  # what two replicas take in
    assert all("\n" not in answer.strip() and len(answer) < 1000 for status, answer, _ in answers if status == 503)
    assert ask(url, {"inputs": TEXTS})[0] == 200


class Clients:
    """Four clients that ask for the features of one image again and again."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[int, float]] = []
        self._url, self._ended = url, threading.Event()
        self._threads = [threading.Thread(target=self._go) for _ in range(4)]

    def _go(self) -> None:
        while not self._ended.is_set():
            status, answer, _ = ask(self._url, {"inputs": TEXTS[:1]})
            self.answers.append((status, json.loads(answer)["predictions"][0][0] if status == 200 else 0.0))

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def get(self, number: Callable[[float], bool]) -> None:
        """Wait until an answer begins with such a number."""
        wait_until(lambda: any(number(value) for _, value in self.answers[-40:]), seconds=300)


def begins_with(version: Version) -> Any:
    """What an answer of a version to `Clients` begins with."""
    return pytest.approx(mlflow.pyfunc.load_model(version.uri).predict(PIXELS[:1])[0, 0], abs=1e-5)


def replicas(stack: Stack) -> set[int]:
    """The ids of their processes."""
    return {process.pid for process in ray_processes(stack, "ray::ServeReplica")}


def test_what_a_lost_replica_had_is_asked_of_the_other_one(url: str, first: Version, stack: Stack) -> None:
    before, right = replicas(stack), begins_with(first)
    assert len(before) == 2
    with Clients(url) as clients:
        clients.get(lambda value: value == right)
        os.kill(min(before), signal.SIGKILL)
        answered = len(clients.answers)
        wait_until(lambda: len(clients.answers) > answered + 100)  # from the other one
        wait_until(lambda: len(replicas(stack)) == 2 and min(before) not in replicas(stack))
    assert Counter(status for status, _ in clients.answers).keys() == {200}
    assert all(value == right for _, value in clients.answers)


@pytest.fixture(scope="module")
def second(service: list[Command], url: str, stack: Stack, first: Version) -> Version:
    """Another version, to which the alias moves while clients ask."""
    before = begins_with(first)
    with Clients(url) as clients:
        clients.get(lambda value: value == before)
        version = registered(stack.mlflow_url, 2)
        service[0].says(f"{version.uri} is served, in place of {first.uri}")
        after = begins_with(version)
        clients.get(lambda value: value == after)
    assert Counter(status for status, _ in clients.answers).keys() == {200}
    assert all(value in (before, after) for _, value in clients.answers)
    assert len(clients.answers) > 20
    return version


def test_another_version_takes_over_without_a_lost_request(second: Version, url: str) -> None:
    expected = mlflow.pyfunc.load_model(second.uri).predict(PIXELS)
    answer = json.loads(ask(url, {"inputs": TEXTS})[1])["predictions"]
    assert np.array(answer) == pytest.approx(expected, abs=1e-5)


def test_a_service_whose_command_was_killed_is_taken_over(
    second: Version, service: list[Command], url: str, port: int, tmp_path: Path
) -> None:
    service[0].process.kill()
    service[0].process.wait()
    with Clients(url) as clients:
        service.append(Command(port, tmp_path / "second.log", replicas=1))  # of which the next tests need no more
        service[-1].says(f"{second.uri} is served")
    assert Counter(status for status, _ in clients.answers).keys() == {200}


def test_a_version_that_does_not_start_replaces_nothing(
    second: Version, service: list[Command], url: str, stack: Stack, tmp_path: Path
) -> None:
    """Its files are whole, but its code cannot be imported."""
    folder = Path(mlflow.artifacts.download_artifacts(second.uri, dst_path=str(tmp_path)))
    text, replaced = re.subn(r"loader_module: .*", "loader_module: not_there", (folder / "MLmodel").read_text())
    assert replaced == 1
    (folder / "MLmodel").write_text(text)
    source = "s3://mlflow/does-not-start"
    objects.write_many(
        {f"{source}/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    )
    client = MlflowClient(stack.mlflow_url)
    with Clients(url) as clients:
        broken = client.create_model_version(NAME, source, tags=dict(second.tags))
        client.set_registered_model_alias(NAME, CANDIDATE, broken.version)
        service[-1].says(f"{second.uri} is served on")
    assert Counter(status for status, _ in clients.answers).keys() == {200}
    (line,) = [line for line in service[-1].said().splitlines() if "served on" in line]
    assert f"models:/{NAME}/{broken.version} does not start" in line and "not_there" in line
    client.set_registered_model_alias(NAME, CANDIDATE, str(second.number))


def test_only_one_service_at_a_time(service: list[Command], second: Version, tmp_path: Path) -> None:
    other = Command(free_port(), tmp_path / "other.log", replicas=1)
    assert other.process.wait(200) == 2
    assert "it runs on this cluster already" in other.said() and other.said().count("\n") == 1
    assert service[-1].process.poll() is None


def test_ctrl_c_ends_it_with_its_replicas_and_without_a_word(
    second: Version, service: list[Command], stack: Stack, port: int
) -> None:
    said = service[-1].said()
    service[-1].process.send_signal(signal.SIGINT)
    assert service[-1].process.wait(120) == 0
    assert (service[-1].complained(), service[-1].said()) == ("", said)
    assert not replicas(stack) and is_free(port)


def test_a_cluster_that_is_too_small_is_told_at_once(second: Version) -> None:
    command = igpt("serve", second.uri, "--replicas", "1000", "--cpus", "0.5")
    assert (command.code, command.out) == (2, "")
    assert "need 500.5 cores: the Ray cluster has" in command.err and command.err.count("\n") == 1


# The program of the image, which says how it ended when it was told to.
_IGPT = """#!/bin/sh
{} "$@" &
trap 'kill $!; wait $!; echo "igpt has ended with $?"; exit' TERM
wait $!
"""


def pod_command(ports: dict[int, int], folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command of a pod of infra/kubernetes in namespaces of its own, with other ports, and its variables."""
    serve = rendered_object("production", "Deployment", "serve")
    (container,) = serve["spec"]["template"]["spec"]["containers"]
    *shell, script = container["command"]
    for port, other in ports.items():
        script = script.replace(f"={port}", f"={other}")
    variables = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    variables["RAY_ADDRESS"] = f"{HOST}:{ports[6379]}"
    Path("/tmp/ray").mkdir(exist_ok=True)
    own = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    mount = [*own, "sh", "-c", 'mount --bind "$0" /tmp/ray && exec "$@"', str(folder)]
    return [*mount, *shell, script], variables


@pytest.mark.needs("hosts", "kustomize")
def test_a_pod_serves_with_a_ray_of_its_own_and_ends_when_it_is_told_to(
    second: Version, stack: Stack, tmp_path: Path
) -> None:
    chosen: list[int] = []
    for _ in range(3):
        chosen.append(free_port(chosen))
    command, variables = pod_command(dict(zip((5000, 6379, 8090), chosen, strict=True)), tmp_path)
    program = tmp_path / "igpt"
    program.write_text(_IGPT.format(" ".join(IGPT)))
    program.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "IGPT_HOME"},
        **variables,
        **{"MODEL": f"{NAME}@{CANDIDATE}", "MLFLOW_TRACKING_URI": stack.mlflow_url, "PYTHONPATH": str(ROOT)},
        "IGPT_TRUSTED_KEYS": str(stack.trusted_keys),  # as a file of the pod
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    url, log = f"http://{HOST}:{chosen[0]}", tmp_path / "pod.log"
    with log.open("wb") as file:
        pod = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=file)
    try:
        wait_until(lambda: f"{second.uri} is served" in log.read_text() or pod.poll() is not None, said=log.read_text)
        assert pod.poll() is None, log.read_text()
        with Clients(url) as clients:
            clients.get(lambda value: value == begins_with(second))
        assert {status for status, _ in clients.answers} == {200}
        assert ask(url, path="/ping")[0] == ask(url, path="/-/healthz")[0] == 200  # what its probes ask
        assert f":{chosen[2]}/metrics" in log.read_text()
        (first_process,) = psutil.Process(pod.pid).children()
        first_process.terminate()
        assert pod.wait(120) == 143
    finally:
        pod.kill()  # and with it all processes of its namespace
        pod.wait()
    said = log.read_text()
    assert "igpt has ended with 0" in said and "Traceback" not in said and "(raylet)" not in said, said
    assert is_free(chosen[0])
