"""What dies in the middle, and that nothing is lost: a training worker, the flow's process, an interrupted build."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from flows.local_stack import Stack
from igpt_model import checkpoint
from pipeline import storage
from tests.integration.conftest import IGPT, ROOT, Refreshed, igpt, refresh_config

pytestmark = pytest.mark.services


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the command ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*IGPT, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    )


def train_workers(stack: Stack) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            named = process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RayTrainWorker")
            if named and process.environ().get("RAY_AUTH_TOKEN") == stack.ray_token:
                found.append(process)
        except psutil.Error:
            continue
    return found


def runs(folder: str) -> dict[str, bytes]:
    """The files of the finished runs in a folder, by their path below the run."""
    files = {}
    for file in storage.list_files(folder):
        files[file.url.split("/", 5)[-1]] = storage.read_bytes(file.url)
    return files


def test_a_killed_training_worker_costs_nothing_but_time(refreshed: Refreshed, stack: Stack, tmp_path: Path) -> None:
    config = {**refresh_config("", "killed")["pretrain"], "dataset": "s3://datasets/refreshed", "steps": 200}
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(config))
    process = start("pretrain", "--config", str(path))

    def two_checkpoints() -> bool:
        marks = [file for file in storage.list_files("s3://runs/killed") if file.url.endswith("00040.json")]
        return bool(marks)

    wait_for(two_checkpoints, process)
    victims = train_workers(stack)
    assert len(victims) == 2
    victims[1].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    killed = runs("s3://runs/killed")
    undisturbed = igpt("pretrain", "--config", str(path), "runs=s3://runs/undisturbed")
    assert undisturbed.code == 0, undisturbed.err
    calm = runs("s3://runs/undisturbed")
    results = [json.loads(files["result.json"]) for files in (killed, calm)]
    assert [result["restarts"] for result in results] == [1, 0]
    assert results[0]["images"] == results[1]["images"] == 200 * 32
    assert results[0]["validation_loss"] == results[1]["validation_loss"]
    weights = "checkpoints/00000200/weights.safetensors"
    assert killed[weights] == calm[weights]


def test_ctrl_c_in_the_training_is_one_line_and_the_same_command_continues(
    refreshed: Refreshed, stack: Stack, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    config = {**refresh_config("", "stopped")["pretrain"], "dataset": "s3://datasets/refreshed", "steps": 400}
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(config))
    process = start("pretrain", "--config", str(path))
    wait_for(lambda: any(f.url.endswith("00020.json") for f in storage.list_files("s3://runs/stopped")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, out + err
    assert err.strip().splitlines()[-1].startswith("igpt: interrupted")
    assert "Traceback" not in out + err
    client = MlflowClient(stack.mlflow_url)
    experiment = client.get_experiment_by_name("stopped")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    again = igpt("pretrain", "--config", str(path))
    assert again.code == 0, again.err
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert json.loads(runs("s3://runs/stopped")["result.json"])["restarts"] == 1


def test_ctrl_c_in_the_build_publishes_nothing_and_a_rerun_completes_it(digits: str, stack: Stack) -> None:
    arguments = (
        *("dataset", "build", f"raw={digits}", "dataset=s3://datasets/stopped", "resolution=8", "colours=16"),
        *("samples_per_shard=20", "validation_fraction=0.1", "test_fraction=0.1"),
    )
    process = start(*arguments)
    wait_for(lambda: any("/shards/" in f.url for f in storage.list_files("s3://datasets/stopped")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not storage.exists("s3://datasets/stopped/LATEST")
    assert not any("/snapshots/" in f.url for f in storage.list_files("s3://datasets/stopped"))
    again = igpt(*arguments)
    assert again.code == 0, again.err
    assert storage.read_bytes("s3://datasets/stopped/LATEST") == b"1\n"


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(refreshed: Refreshed, tmp_path: Path) -> None:
    copy = "s3://runs/damaged"
    for file in storage.list_files(refreshed.run):
        storage.write_bytes(file.url.replace(refreshed.run, copy), storage.read_bytes(file.url))
    newest = f"{copy}/checkpoints/00000040/weights.safetensors"
    storage.write_bytes(newest, storage.read_bytes(newest)[:-100])
    lines: list[str] = []
    found = checkpoint.load_newest(copy, tmp_path, warn=lines.append)
    assert found is not None
    assert found.state.step == 20
    assert len(lines) == 1 and "step 40 is damaged" in lines[0]
