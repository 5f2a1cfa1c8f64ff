"""Lost workers, nodes, drivers and stores: training takes longer and gives the curve of an undisturbed one.

Three Ray nodes on separate hosts, S3 behind a proxy, MLflow. Every rank logs the positions that it trains on.
"""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient

from igpt_model.config import PretrainConfig
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.samples.order import SampleOrder
from tests.igpt_model.training.test_loop import KilledError, Recorder, digits_snapshot
from tests.igpt_model.training.workers import run_workers
from tests.rigs.fixtures import Rig
from tests.rigs.mlflow_server import MlflowServer, mlflow_server
from tests.rigs.s3_faults import Fault, Faults
from tests.rigs.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.faults]

STEPS, EVERY, BATCH = 160, 20, 96
# What `igpt pretrain` does, without Prefect.
TRAIN = """
import json, os, sys
import ray
variables = {"PYTHONPATH": os.environ["POSITIONS_CODE"], "POSITIONS": sys.argv[2], "GLOO_SOCKET_IFNAME": "eth0"}
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, runtime_env={"env_vars": variables})
from flows.terminal.console import Reporter
from flows.pretrain import open_tracked, train_tracked
from igpt_model.config import PretrainConfig
from pipeline.dataset import snapshot
from pipeline.store import objects as storage
from pipeline.errors import IgptError

config = PretrainConfig.from_fields(**json.loads(sys.argv[1]))
data = snapshot.read(config.data.dataset)
run = storage.join(config.keeping.runs, config.keeping.name)
reporter = Reporter("pretrain")
try:
    logger = open_tracked(config, data, run, {}, os.environ["MLFLOW_TRACKING_URI"], reporter)
    with logger.closing():
        train_tracked(config, data, run, logger, reporter)
except IgptError as error:
    print("igpt:", error)
    sys.exit(2)
print("finished")
"""
# Loaded by every Python process of the training: what igpt_model.training.loop logs goes to a file at once.
POSITIONS_CODE = """
import logging, os, time

class Positions(logging.Handler):
    def emit(self, record):
        line = f"{time.time():.3f} {record.getMessage()}\\n"
        folder = os.environ["POSITIONS"]
        file = os.open(f"{folder}/{os.getpid()}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

if os.environ.get("POSITIONS"):
    logging.getLogger("igpt_model.training.loop").addHandler(Positions())
    logging.getLogger("igpt_model.training.loop").setLevel(logging.DEBUG)
"""
LINE = re.compile(r"([\d.]+) restart (\d+) step (\d+): rank (\d+) of (\d+) has positions (\d+) to (\d+)")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The rig, MLflow and the dataset of this module's trainings."""

    rig: Rig
    mlflow: MlflowServer
    data: Snapshot
    folder: Path


@pytest.fixture(scope="module")
def place(whole_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("faults")
    data = digits_snapshot(folder / "digits")
    shutil.copytree(folder / "digits" / "dataset", whole_rig.s3.bucket("datasets") / "digits")
    (folder / "code").mkdir()
    (folder / "code" / "sitecustomize.py").write_text(POSITIONS_CODE)
    with mlflow_server(folder / "mlflow", whole_rig.network.address) as server:
        yield Place(rig=whole_rig, mlflow=server, data=data, folder=folder)


class Training:
    """A training of the digits by three workers, whose driver is a process on the first host."""

    is_watched = False
    """Whether Ray Train watches for preemption notices."""

    def __init__(self, place: Place, name: str, **fields: Any) -> None:
        self.place, self.name = place, name
        self.config = {
            **{"runs": "s3://runs/faults", "name": name, "dataset": "s3://datasets/digits", "experiment": name},
            **{"preset": "tiny", "layers": 2, "width": 32, "steps": STEPS, "global_batch": BATCH, "warmup_steps": 10},
            **{"checkpoint_every": EVERY, "evaluate_every": 2 * EVERY, "keep_last": 3, "workers": 3, "max_restarts": 5},
            **{"upload_seconds": 100, "hang_seconds": 150},
            **fields,
        }
        self.steps = int(self.config["steps"])
        self.folder = place.rig.s3.bucket("runs") / "faults" / name
        self.positions = place.folder / f"positions-{name}"
        self.positions.mkdir(exist_ok=True)
        self.log = place.folder / f"{name}.log"

    def start(self) -> "Training":
        head = self.place.rig.hosts[0]
        environment = {
            **self.place.rig.nodes.environment(head),
            "MLFLOW_TRACKING_URI": self.place.mlflow.url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "POSITIONS_CODE": str(self.place.folder / "code"),
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if self.is_watched else "0",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",  # the default of 5 s is half of this training
        }
        command = [sys.executable, "-c", TRAIN, json.dumps(self.config), str(self.positions)]
        self.driver = head.start(command, environment, self.log)
        return self

    def finish(self, seconds: float = 300) -> str:
        """Wait for the end; returns the output, and fails with it unless the training has finished."""
        assert self.driver.wait(timeout=seconds) == 0, self.log.read_text()
        assert "\nfinished\n" in self.log.read_text()  # Ray may report a killed worker after it
        return self.log.read_text()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.driver.poll() is None, f"it ended before it was disturbed: {self.log.read_text()}"
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def mlflow_status(self) -> str:
        client = MlflowClient(self.place.mlflow.url)
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        return run.info.status

    def worker_restarts(self) -> list[float]:
        """The values of the metric, of the first driver at least."""
        client = MlflowClient(self.place.mlflow.url)
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        return [metric.value for metric in client.get_metric_history(run.info.run_id, "worker_restarts")]

    def has_checkpoint(self, step: int) -> bool:
        return (self.folder / "checkpoints" / f"{step:08d}" / "index.json").exists()

    def has_done(self, step: int) -> bool:
        return any(line.step > step for line in self.lines())

    def lines(self) -> list["Line"]:
        logged = []
        for path in self.positions.glob("*.log"):
            for text in LINE.findall(path.read_text()):
                logged.append(Line(pid=int(path.stem), at=float(text[0]), numbers=tuple(map(int, text[1:]))))
        return sorted(logged, key=lambda line: line.at)

    def worker(self, rank: int) -> int:
        """The process id of a rank in the current group."""
        return next(line.pid for line in reversed(self.lines()) if line.rank == rank)

    def check(self, *, workers: set[int]) -> None:
        """Every sample was seen once per epoch, and one finished MLflow run has one value per step."""
        order = SampleOrder([shard.samples for shard in self.place.data.of_split("train")], seed=0, window_shards=64)
        seen, worker_counts = [], set()
        of_steps: dict[int, list[Line]] = {}
        for line in self.lines():
            of_steps.setdefault(line.step, []).append(line)
        for step in range(1, self.steps + 1):
            lines = of_steps[step]
            last = [line for line in lines if line.attempt == lines[-1].attempt]  # earlier attempts were lost
            ranges = sorted({(line.start, line.stop) for line in last})
            assert ranges[0][0] == BATCH * (step - 1) and ranges[-1][1] == BATCH * step
            assert all(former[1] == latter[0] for former, latter in pairwise(ranges))
            worker_counts.add(last[0].workers)
            for begin, end in ranges:
                samples = order.at(begin, end)
                seen += list(zip(samples.shards.tolist(), samples.rows.tolist(), strict=True))
        assert worker_counts == workers
        assert len(seen) == self.steps * BATCH > 40 * order.samples
        for epoch in range(len(seen) // order.samples):
            assert len(set(seen[epoch * order.samples : (epoch + 1) * order.samples])) == order.samples
        client = MlflowClient(self.place.mlflow.url)
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        for number, name in enumerate(("train_loss", "validation_loss")):
            history = client.get_metric_history(run.info.run_id, name)
            expected = {step: pair[number] for step, pair in curve(self.folder).items() if pair[number]}
            assert sorted(metric.step for metric in history) == sorted(expected)  # one value each
            assert {m.step: m.value for m in history} == pytest.approx(expected, abs=1e-3)


def curve(folder: Path) -> dict[int, tuple[float, float]]:
    """Training and validation loss by step, from a run's folder."""
    values: dict[int, tuple[float, float]] = {}
    for path in sorted((folder / "reports").iterdir()):
        for step, metrics in json.loads(path.read_text()):
            values[step] = metrics["train_loss"], metrics.get("validation_loss", 0.0)
    return values


def weights(folder: Path) -> dict[str, bytes]:
    """The files of the final weights, by name."""
    return {path.name: path.read_bytes() for path in (folder / "checkpoints" / f"{STEPS:08d}").glob("weights-*")}


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a rank logged at a step."""

    pid: int
    at: float
    numbers: tuple[int, ...]

    step = property(lambda self: self.numbers[1])
    rank = property(lambda self: self.numbers[2])
    workers = property(lambda self: self.numbers[3])
    start = property(lambda self: self.numbers[4])
    stop = property(lambda self: self.numbers[5])
    attempt = property(lambda self: (self.numbers[0], self.numbers[3]))


@pytest.fixture(scope="module")
def calm(place: Place) -> Path:
    """The folder of the same training, undisturbed: three workers without Ray, on this host."""
    config = {**Training(place, "calm").config, "runs": str(place.folder / "runs"), "dataset": place.data.dataset}
    path = place.folder / "calm.yaml"
    path.write_text(yaml.safe_dump({**config, "cache": str(place.folder / "cache")}))
    run_workers(3, "igpt_model.train", str(path))
    return place.folder / "runs" / "calm"


def assert_same_bits(training: Training, calm: Path) -> None:
    assert curve(training.folder) == curve(calm)
    assert weights(training.folder) == weights(calm)
    assert len(weights(calm)) == 3


def test_workers_killed_in_a_step_and_in_an_upload_and_a_lost_node_that_comes_back(
    rig: Rig, place: Place, calm: Path
) -> None:
    training = Training(place, "workers").start()
    training.wait_until(lambda: training.has_done(EVERY + 5))
    psutil.Process(training.worker(1)).kill()
    partial = training.folder / "checkpoints" / f"{3 * EVERY:08d}"
    training.wait_until(partial.exists)
    psutil.Process(training.worker(2)).kill()
    assert not training.has_checkpoint(4 * EVERY), "it was killed too late"
    training.wait_until(lambda: training.has_checkpoint(4 * EVERY))
    rig.hosts[2].remove()
    assert not training.has_done(STEPS - 20), "it was lost too late"
    rig.nodes.wait_until_alive(rig.hosts[:2])
    rig.nodes.heal()
    training.finish()
    training.check(workers={3})
    assert_same_bits(training, calm)
    counted = training.worker_restarts()
    assert counted[:3] == [0, 1, 2] and max(counted) >= 3


@pytest.mark.sample
def test_a_node_lost_after_a_preemption_notice_and_a_worker_that_hangs(rig: Rig, place: Place, calm: Path) -> None:
    # Regular checkpoints are so rare that only the notice causes one.
    training = Training(place, "leaving", checkpoint_every=1000, upload_seconds=8, hang_seconds=12)
    training.is_watched = True
    training.start()
    training.wait_until(lambda: training.has_done(5))
    rig.nodes.drain(rig.hosts[2], seconds=30)
    training.wait_until(lambda: any(training.folder.glob("checkpoints/*/index.json")))
    (saved,) = [int(path.parent.name) for path in training.folder.glob("checkpoints/*/index.json")]
    rig.hosts[2].remove()
    assert not training.has_done(STEPS - 5), "it was taken away too late"
    rig.nodes.heal()

    def restarted() -> list[Line]:
        """Lines logged after a restart. The checkpoint counts none yet, so both restarts have number 1."""
        return [line for line in training.lines() if line.numbers[0] == 1]

    training.wait_until(lambda: len(restarted()) > 3)
    psutil.Process(training.worker(1)).suspend()  # Ray kills it with the group
    assert not training.has_done(STEPS - 5), "it was stopped too late"
    said = training.finish()
    assert min(line.step for line in restarted()) == saved + 1  # no step before the checkpoint is repeated
    assert len({line.pid for line in restarted() if line.step == saved + 1}) == 6  # of both restarts
    # The workers that wait for it end by themselves, in either order.
    assert re.search(rf"worker [02] made no step for 12 s after step \d+: .*/{training.name}/stacks/", said)
    stacks = "".join(path.read_text() for path in (training.folder / "stacks").iterdir())
    assert "train_step" in stacks
    training.check(workers={3})
    assert_same_bits(training, calm)


def test_a_killed_driver_and_a_cut_checkpoint_and_the_same_command_again_with_a_failing_store(
    rig: Rig, place: Place, calm: Path
) -> None:
    """The store is down for thirty seconds, and then a third of its requests fail."""
    training = Training(place, "driver").start()
    training.wait_until(lambda: training.has_checkpoint(2 * EVERY))
    os.killpg(training.driver.pid, signal.SIGKILL)
    training.driver.wait()
    assert not training.has_done(4 * EVERY), "it was killed too late"
    workers = {line.pid for line in training.lines()}
    wait_until(lambda: not any(map(psutil.pid_exists, workers)))  # the workers end with the driver
    assert training.mlflow_status() == "RUNNING"
    (*_, newest) = sorted(path.parent for path in training.folder.glob("checkpoints/*/index.json"))
    file = newest / "weights-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    damaged = int(newest.name)
    training.start()
    training.wait_until(lambda: training.has_checkpoint(damaged + EVERY))
    rig.proxy.stop_for(30)
    try:
        # Training continues while nothing can be written.
        training.wait_until(lambda: training.has_done(damaged + 2 * EVERY))
        assert not training.has_checkpoint(damaged + 2 * EVERY)
        training.wait_until(lambda: training.has_checkpoint(damaged + 2 * EVERY))
        with rig.proxy.inject(
            Faults(share=1 / 3, kinds=(Fault.SLOW_DOWN, Fault.INTERNAL_ERROR, Fault.RESET))
        ) as faults:
            said = training.finish()
        assert faults.counts.total() > 10
    finally:
        rig.proxy.resume()
    assert f"checkpoint of step {damaged} is damaged" in said
    training.check(workers={3})
    assert_same_bits(training, calm)


def test_three_nodes_to_two_and_back_to_three(rig: Rig, place: Place, tmp_path: Path) -> None:
    training = Training(place, "elastic", min_workers=2, resize_seconds=2, steps=600, evaluate_every=600).start()
    training.wait_until(lambda: training.has_checkpoint(EVERY))
    rig.hosts[1].remove()
    training.wait_until(lambda: any(line.workers == 2 for line in training.lines()))
    rig.nodes.heal()
    said = training.finish()
    assert "training goes on with 2 workers, it had 3" in said and "training goes on with 3 workers, it had 2" in said
    training.check(workers={2, 3})
    # One worker, up to a step after the changes from three to two and back to three.
    alone = {**training.config, "runs": str(tmp_path), "dataset": place.data.dataset, "cache": str(tmp_path / "cache")}
    config = PretrainConfig.from_fields(**{**alone, "workers": 1, "min_workers": None})
    recorder = Recorder()

    def stop(step: int) -> None:
        if step == 200:
            raise KilledError

    with pytest.raises(KilledError):
        train(config, place.data, str(tmp_path), Worker(), recorder, heartbeat=stop)
    ours = {step: curve(training.folder)[step][0] for step in recorder.values}
    assert len(ours) == 19
    assert ours == pytest.approx({step: values["train_loss"] for step, values in recorder.values.items()}, abs=5e-3)


def test_a_loss_that_is_not_finite_fails_the_run_with_one_line(rig: Rig, place: Place) -> None:
    training = Training(place, "nan", learning_rate=1e30, max_skipped_steps=3, workers=2).start()
    assert training.driver.wait(timeout=300) == 2
    (line,) = [line for line in training.log.read_text().splitlines() if line.startswith("igpt:")]
    assert "the loss is" in line and "as in the 3 steps before; lower learning_rate and run again" in line
    assert training.mlflow_status() == "FAILED"


def test_what_the_cluster_lacks_is_named_before_anything_starts(rig: Rig, place: Place) -> None:
    training = Training(place, "large", workers=5).start()
    assert training.driver.wait(timeout=120) == 2
    (line,) = [line for line in training.log.read_text().splitlines() if line.startswith("igpt:")]
    assert "workers 5 need 1 CPU each, placed PACK, and the Ray cluster has room for 3" in line
    assert all(f"{host.address}: 1 CPU" in line for host in rig.hosts) and "2 missing" in line
    assert training.lines() == []
