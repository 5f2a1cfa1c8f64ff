"""The processes of a service: started apart from the terminal, found by their owner, ended with their children."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.services import process
from flows.services.ports import HOST, free_port
from flows.services.process import Service

# Listens on a port, and has a child that listens to nothing.
SERVE = """
import socket, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    port = free_port()
    return Service(
        name="s3",
        port=port,
        url=f"http://{HOST}:{port}",
        command=(sys.executable, "-c", SERVE, str(port)),
        environment=process.owner_variable(tmp_path, "s3"),
        folder=tmp_path,
        log=tmp_path / "s3.log",
        check=lambda: None,
    )


@pytest.fixture
def started(service: Service) -> Iterator[psutil.Process]:
    running = process.start(service)
    while b"ready" not in service.log.read_bytes():
        assert process.is_alive(running), service.log.read_text()
    yield running
    process.end(process.process_tree(running), timeout_seconds=10)


def test_a_service_runs_apart_and_is_found_with_its_children(
    service: Service, started: psutil.Process, tmp_path: Path
) -> None:
    assert os.getsid(started.pid) == started.pid, "Ctrl-C in the terminal would reach it"
    tree = process.process_tree(started)
    assert len(tree) == 2
    assert set(process.service_processes(tmp_path, ["s3"], tmp_path / "ray")) == set(tree)
    for home, names in ((tmp_path / "other", ["s3"]), (tmp_path, ["mlflow"])):
        assert process.service_processes(home, names, tmp_path / "ray") == []
    started.kill()
    started.wait(10)
    (orphan,) = process.service_processes(tmp_path, ["s3"], tmp_path / "ray")
    assert orphan in tree
    process.end([orphan], timeout_seconds=10)


def test_what_is_wrong_with_a_service_is_told(service: Service, started: psutil.Process, tmp_path: Path) -> None:
    assert process.find_problem(service, started) is None
    assert process.find_problem(replace(service, check=lambda: "it refuses"), started) == "it refuses"
    with socket.create_server((HOST, 0)) as foreign:
        port = foreign.getsockname()[1]
        assert (
            process.find_problem(replace(service, port=port), started) == f"another program answers on its port {port}"
        )


def test_all_are_ended_also_those_that_ignore_it(started: psutil.Process) -> None:
    (child,) = started.children()
    child.suspend()  # it cannot act on being asked to end
    process.end([started, child], timeout_seconds=0.5)
    assert not process.is_alive(started) and not process.is_alive(child)
    assert process.process_tree(started) == []
    process.end([started, child], timeout_seconds=0.5)


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        ended = psutil.Process(child.pid)
        while ended.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert ended.is_running()
        assert not process.is_alive(ended)


def test_the_log_of_the_process_before_is_kept(service: Service, started: psutil.Process) -> None:
    service.log.write_text("of the first")
    process.end(process.process_tree(started), timeout_seconds=10)
    again = process.start(service)
    assert service.log.with_suffix(".previous.log").read_text() == "of the first"
    again.send_signal(signal.SIGKILL)
    process.end(process.service_processes(service.folder, ["s3"], service.folder), timeout_seconds=10)


def test_settings_of_the_shell_do_not_reach_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "AWS_PROFILE", "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RCLONE_CONFIG", "IGPT_KEPT"):
        monkeypatch.setenv(name, "x")
    inherited = process.inherited_environment()
    assert inherited["IGPT_KEPT"] == "x" and "PATH" in inherited
    assert not [name for name in inherited if name.startswith(("PREFECT_", "AWS_", "RAY_", "MLFLOW_", "RCLONE_"))]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "it is empty"),
        ("", "it is empty"),
        ("starting\nready\n\n", "ready"),
        ("Traceback\nOSError: address in use\nbye\n", "OSError: address in use"),
        ("ERROR one\n\x1b[31mFATAL: two\x1b[0m   words\nbye", "FATAL: two words"),
        ("x" * 400, "x" * 300),
    ],
)
def test_the_line_that_says_why_a_service_ended(text: str | None, line: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "log").write_text(text)
    assert process.error_line(tmp_path / "log") == line
