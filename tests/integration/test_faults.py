"""A killed training worker, a killed flow and an interrupted build: nothing is lost."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from flows.services.local_stack import Stack
from igpt_model.runs import checkpoint, record
from pipeline.store import objects
from tests.conftest import Command
from tests.integration.conftest import IGPT, ROOT, Refreshed, igpt

pytestmark = [pytest.mark.services, pytest.mark.faults]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 300) -> None:
    """Wait for the moment to disturb a command; if it does not come, end it, so that it takes nothing from others."""
    try:
        deadline = time.monotonic() + seconds
        while not condition():
            assert process.poll() is None, "the command ended before it could be disturbed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    except BaseException:
        process.kill()
        raise


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*IGPT, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    )


def train_workers(stack: Stack) -> list[psutil.Process]:
    workers = []
    for process in psutil.process_iter():
        try:
            named = process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RayTrainWorker")
            if named and process.environ().get("RAY_AUTH_TOKEN_PATH") == str(stack.ray_token_path):
                workers.append(process)
        except psutil.Error:
            continue
    return workers


def files_of(folder: str) -> dict[str, bytes]:
    """The files of the only run in a folder, by their path below it."""
    return {file.url.split("/", 5)[-1]: objects.read_bytes(file.url) for file in objects.list_files(folder)}


def has_checkpoint(folder: str, step: int) -> Callable[[], bool]:
    return lambda: any(file.url.endswith(f"{step:08d}/index.json") for file in objects.list_files(folder))


@pytest.fixture(scope="module")
def stopped(refreshed: Refreshed, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The training of the refreshed run, repeated in another folder and stopped by Ctrl-C."""
    config = {**refreshed.config["pretrain"], "dataset": "s3://datasets/refreshed", "runs": "s3://runs/stopped"}
    path = tmp_path_factory.mktemp("stopped") / "pretrain.yaml"
    path.write_text(yaml.safe_dump({**config, "experiment": "stopped"}))
    process = start("pretrain", "--config", str(path))
    wait_for(has_checkpoint("s3://runs/stopped", 40), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    return Command(code=process.returncode, out=out, err=err)


def mlflow_status(stack: Stack) -> str:
    """The status of the only run of the experiment."""
    client = MlflowClient(stack.mlflow_url)
    experiment = client.get_experiment_by_name("stopped")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run.info.status


@pytest.mark.sample
def test_ctrl_c_in_the_training_is_one_line_and_closes_its_run(stopped: Command, stack: Stack) -> None:
    assert stopped.code == 130, stopped.out + stopped.err
    assert stopped.err.strip().splitlines()[-1].startswith("igpt: interrupted")
    assert "Traceback" not in stopped.out + stopped.err
    assert "result.json" not in files_of("s3://runs/stopped")
    assert mlflow_status(stack) == "KILLED"


@pytest.mark.sample
@pytest.mark.usefixtures("stopped")
def test_runs_resume_goes_on_and_a_killed_worker_costs_nothing_but_time(refreshed: Refreshed, stack: Stack) -> None:
    """Continuing with the same command is tested on separate nodes, in test_training_faults.py."""
    (run,) = record.find("s3://runs/stopped")
    process = start("runs", "resume", run)
    # Look for them while they start: after the checkpoint, the remaining steps take only a second, as may the search.
    wait_for(lambda: len(train_workers(stack)) == 2, process)
    victims = train_workers(stack)
    wait_for(has_checkpoint("s3://runs/stopped", 80), process)
    victims[1].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    disturbed, calm = files_of("s3://runs/stopped"), files_of("s3://runs/refreshed")
    results = [json.loads(files["result.json"]) for files in (disturbed, calm)]
    assert [result["restarts"] for result in results] == [2, 0]
    for name in ("images", "validation_loss", "steps"):
        assert results[0][name] == results[1][name]
    for rank in range(2):
        weights = f"checkpoints/{results[0]['steps']:08d}/weights-{rank:05d}.safetensors"
        assert disturbed[weights] == calm[weights]
    assert mlflow_status(stack) == "FINISHED"


def test_ctrl_c_in_the_build_publishes_nothing_and_a_rerun_completes_it(digits: str, stack: Stack) -> None:
    arguments = (
        *("dataset", "build", f"raw={digits}", "dataset=s3://datasets/stopped", "resolution=8", "colours=16"),
        # Enough shards that the signal cannot come too late.
        *("samples_per_shard=2", "validation_fraction=0.1", "test_fraction=0.1"),
    )
    process = start(*arguments)
    wait_for(lambda: any("/shards/" in f.url for f in objects.list_files("s3://datasets/stopped")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not objects.exists("s3://datasets/stopped/LATEST")
    assert not any("/snapshots/" in f.url for f in objects.list_files("s3://datasets/stopped"))
    again = igpt(*arguments)
    assert again.code == 0, again.err
    assert objects.read_bytes("s3://datasets/stopped/LATEST") == b"1\n"


@pytest.mark.sample
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(refreshed: Refreshed) -> None:
    copy = "s3://runs/damaged"
    objects.write_many(
        {
            file.url.replace(refreshed.run, copy): objects.read_bytes(file.url)
            for file in objects.list_files(refreshed.run)
        }
    )
    *_, before, last = checkpoint.marked_steps(copy)
    newest = f"{copy}/checkpoints/{last:08d}/weights-00001.safetensors"
    objects.write_bytes(newest, objects.read_bytes(newest)[:-100])
    lines: list[str] = []
    opened = checkpoint.use_newest(copy, lambda good, fetch: (good.state.step, good.model(fetch)), warn=lines.append)
    assert opened is not None
    assert opened[0] == before
    assert len(lines) == 1 and f"step {last} is damaged" in lines[0]
