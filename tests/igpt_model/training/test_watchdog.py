"""A worker without progress reports its stacks and ends, and the run resumes from its last checkpoint."""

import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist
import yaml

from igpt_model.config import PretrainConfig
from igpt_model.runs import metric_log
from igpt_model.training import standalone, watchdog
from igpt_model.training.loop import _Training, train
from igpt_model.training.ray import process_group
from igpt_model.training.watchdog import Watchdog
from igpt_model.worker import Worker
from tests.igpt_model.training.test_loop import Recorder, digits_snapshot, short_training

ROOT = Path(__file__).parents[3]
HANG = """
import sys, threading, time
from igpt_model.training.watchdog import Watchdog
def wait_for_ever(): threading.Event().wait()
def report(text):
    print(text, flush=True)
    if sys.argv[1] == "stuck": time.sleep(600)
with Watchdog(1.0, report) as watchdog:
    for _ in range(6):
        time.sleep(0.4)
        watchdog.beat()
    if sys.argv[1] != "well": wait_for_ever()
print("ended")
"""


def test_a_process_without_progress_reports_its_stacks_and_ends() -> None:
    done = subprocess.run([sys.executable, "-c", HANG, "hung"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 75, done.stderr
    assert "wait_for_ever" in done.stdout
    well = subprocess.run([sys.executable, "-c", HANG, "well"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (well.returncode, well.stdout) == (0, "ended\n")


def test_the_end_is_reported_even_if_the_stacks_cannot_be_stored(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("where the folder would be")
    recorder = Recorder()
    worker = SimpleNamespace(
        run=str(tmp_path),
        state=SimpleNamespace(step=7),
        worker=Worker(),
        listener=recorder,
        config=PretrainConfig.from_fields(runs="runs"),
    )
    _Training.report_stacks(worker, "Thread 1")  # type: ignore[arg-type]
    (line,) = recorder.lines
    assert line.startswith("worker 0 made no step for 900 s after step 7: it is ended, its stacks could not be kept (")


@pytest.mark.parametrize("hang_seconds", [0.0, 301.0, 900.0, 1790.0, 86_400.0])
def test_the_watchdog_comes_before_the_time_out_of_a_collective(
    hang_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig.from_fields(runs="r", hang_seconds=hang_seconds)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in {**address, "TORCHELASTIC_RUN_ID": "as under torchrun"}.items():
        monkeypatch.setenv(name, value)
    with standalone.worker(config):
        group = dist.distributed_c10d._get_default_group()
        under_torchrun = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    on_ray = process_group(config.execution).timeout_s
    for seconds in (under_torchrun, on_ray):
        assert seconds >= hang_seconds + 2 * watchdog._REPORT_SECONDS
        assert seconds >= 1800, "PyTorch's default, for what comes before the first step"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_suspended_machine_is_not_a_hung_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    suspended_seconds, ended, reports = [0.0], threading.Event(), []

    def end(_: int) -> None:
        ended.set()
        raise SystemExit  # the watchdog's thread does no more, as if the process were gone

    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(suspended_seconds)))
    monkeypatch.setattr(watchdog, "os", SimpleNamespace(_exit=end))
    with Watchdog(2.0, reports.append):
        time.sleep(0.7)
        suspended_seconds.append(100.0)
        assert not ended.wait(1.0)
        assert ended.wait(60), "the timeout restarts"
    assert len(reports) == 1


@pytest.mark.programs
def test_a_collective_whose_partner_is_stuck_ends_and_the_run_goes_on(tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path)
    config = short_training(data, tmp_path).with_fields(steps=60, upload_seconds=4, hang_seconds=6, name="hung")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "igpt_model.train", str(path)]
    run = tmp_path / "runs" / "hung"
    launched = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (run / "checkpoints" / "00000010" / "index.json").exists():
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.005)
    by_rank = {child.environ()["RANK"]: child for child in psutil.Process(launched.pid).children()}
    other, victim = by_rank["0"], by_rank["1"]
    victim.suspend()
    assert not (run / "result.json").exists(), "it was stopped too late"
    try:
        deadline = time.monotonic() + 60
        while not (stacks := sorted((run / "stacks").glob("*-00000.txt"))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        psutil.wait_procs([other], timeout=60)
    finally:
        victim.resume()
    out, _ = launched.communicate(timeout=60)
    assert launched.returncode != 0
    assert "worker 0 made no step for 6 s" in out.decode()
    assert "in all_reduce" in stacks[0].read_text() or "backward" in stacks[0].read_text()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    recorder = Recorder()
    # In this process, which the watchdog would end if the machine stood still for six seconds.
    train(config.with_fields(hang_seconds=900), data, str(tmp_path / "calm"), Worker(), recorder)
    curve = {entry.step: entry.values["train_loss"] for entry in metric_log.read(str(run))}
    assert curve == pytest.approx({step: values["train_loss"] for step, values in recorder.values.items()}, abs=1e-4)
