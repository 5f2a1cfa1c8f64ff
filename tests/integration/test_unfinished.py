"""A killed training is finished on its own snapshot before one on the next begins, or given up with a reason."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from flows.services.local_stack import Stack
from igpt_model.registry.client import Registry
from igpt_model.runs import attempts, record
from pipeline.dataset import snapshot
from pipeline.store import objects
from tests.integration.conftest import igpt, python, refresh_config
from tests.integration.test_scheduled import ray_processes
from tests.rigs.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.faults]

RAW = "s3://raw/arriving"
COMMAND_LINE = "from flows.cli.main import main\nmain()"
# A training whose workers die each time, at once.
DYING = """
import json, sys, time
import flows.pretrain as module
from flows.cli.options import prepare
from igpt_model.config import PretrainConfig
from igpt_model.training.ray import WorkersDiedError
from pipeline.errors import IgptError

prepare(None)
began = []

def die(job, listener, progress):
    began.append(time.monotonic())
    raise WorkersDiedError("n1: out of memory")

module.train_on_cluster = die
try:
    module.pretrain(PretrainConfig.from_fields(**json.loads(sys.argv[1])))
except IgptError as error:
    print("pauses", json.dumps([after - before for before, after in zip(began, began[1:])]))
    print(error)
"""


@pytest.fixture(scope="module")
def config(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nightly refresh that goes on from the champion, with 200 digits as its images."""
    from flows.demo import encode_digits

    objects.write_many(dict(list(encode_digits(RAW).items())[:200]))
    fields = refresh_config(RAW, "unfinished")
    fields["pretrain"] |= {
        **{
            "parent": "models:/unfinished@champion",
            "workers": 1,
            "steps": 120,
            "checkpoint_every": 20,
            "sample_every": 0,
        },
        **{"max_failures": 3, "pause_seconds": 1.0},
    }
    fields["probe"] = {"strengths": [0.1]}
    path = tmp_path_factory.mktemp("unfinished") / "refresh.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def runs_by_snapshot() -> dict[int | None, str]:
    return {record.read(run).config.data.snapshot: run for run in record.find("s3://runs/unfinished")}


@pytest.mark.timeout(1500)
def test_a_killed_training_is_finished_on_its_snapshot_before_the_next_one_begins(config: Path, stack: Stack) -> None:
    killed = python(COMMAND_LINE, "refresh", "--config", str(config))
    wait_until(
        lambda: any("/checkpoints/00000020/index" in file.url for file in objects.list_files("s3://runs/unfinished")),
        seconds=500,
    )
    killed.send_signal(signal.SIGKILL)
    for process in ray_processes(stack, "ray::RayTrainWorker"):
        process.kill()
    killed.wait(timeout=60)
    ((first, run),) = runs_by_snapshot().items()
    assert first == 1 and not objects.exists(objects.join(run, "result.json"))
    assert attempts.failures(run).count <= 1 and attempts.awaits_registration(run)

    arrival = next(iter(objects.list_files(RAW))).url
    objects.write_bytes(f"{RAW}/9/arrival.png", objects.read_bytes(arrival))
    again = igpt("refresh", "--config", str(config), seconds=900)
    assert again.code == 0, again.out + again.err
    assert f"unfinished: {run} was begun on snapshot 1 and is at step " in again.out
    assert "parent models:/unfinished@champion is models:/unfinished/1; this run keeps it" in again.out
    assert "registered models:/unfinished/2" in again.out
    assert snapshot.read("s3://datasets/unfinished").number == 2
    by_snapshot = runs_by_snapshot()
    assert by_snapshot[1] == run and set(by_snapshot) == {1, 2}
    results = {number: json.loads(objects.read_bytes(f"{of}/result.json")) for number, of in by_snapshot.items()}
    assert [(result["steps"], result["restarts"]) for result in (results[1], results[2])] == [(120, 1), (120, 0)]
    client = MlflowClient(stack.mlflow_url)
    tracked = record.read(run).mlflow_run
    assert tracked is not None and client.get_run(tracked).info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(tracked, "train_loss")]
    assert steps == list(range(10, 130, 10)), "every step once, in one MLflow run"
    versions = [Registry(stack.mlflow_url).find(f"unfinished/{number}") for number in (1, 2)]
    assert [version.tags["igpt.snapshot"] for version in versions] == ["1", "2"]
    assert [version.tags.get("igpt.parent_model") for version in versions] == [None, "models:/unfinished/1"]
    assert not any(attempts.awaits_registration(of) for of in by_snapshot.values())


def test_a_run_that_keeps_failing_is_given_up_and_a_person_can_take_it_up_again(config: Path, stack: Stack) -> None:
    fields = yaml.safe_load(config.read_text())["pretrain"]
    given = {**fields, "dataset": "s3://datasets/unfinished", "snapshot": 1, "seed": 1, "parent": ""}
    out, err = python(DYING, json.dumps(given)).communicate(timeout=300)
    assert "Traceback" not in err, err
    (pauses,) = [json.loads(line.removeprefix("pauses ")) for line in out.splitlines() if line.startswith("pauses ")]
    assert len(pauses) == 2 and pauses[0] >= 1 and pauses[1] >= 2
    assert "attempt 3 of 3 begins in 2 s" in out
    assert "given up: it failed 3 times in a row without a new checkpoint" in out and "n1: out of memory" in out
    (run,) = [file.url.removesuffix("/abandoned.json") for file in objects.list_files(fields["runs"])
              if file.url.endswith("/abandoned.json")]  # fmt: skip
    assert "n1: out of memory" in str(attempts.why_abandoned(run))
    tracked = MlflowClient(stack.mlflow_url).get_run(record.read(run).mlflow_run)
    assert tracked.info.status == "FAILED" and "n1: out of memory" in tracked.data.tags["igpt.abandoned"]
    refused = igpt("pretrain", *(f"{name}={value}" for name, value in given.items()))
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert f"{run} was given up: " in line and "takes it up again" in line
