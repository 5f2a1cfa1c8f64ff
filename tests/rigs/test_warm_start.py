"""Forked processes behave like started ones: output, exit status, signals, variables."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.warm_start import WarmStart

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStart]:
    with WarmStart(Path(__file__).parents[2], {"GIVEN": "1"}) as started:
        yield started


def test_the_command_line_gives_the_output_and_exit_code_of_a_started_one(warm: WarmStart) -> None:
    process = warm.command("config", "dataset")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and "samples_per_shard: 8192" in out
    process = warm.command("config", "nothing")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "") and err.startswith("igpt: 'nothing' has no config")


def test_code_gets_its_arguments_and_variables_and_runs_its_exit_handlers(warm: WarmStart) -> None:
    code = "import atexit, os, sys; atexit.register(print, 'end'); print(sys.argv[1], os.environ['GIVEN']); sys.exit(7)"
    process = warm.program(code, "first")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (7, "first 1\nend\n")


def test_two_run_at_once_and_a_signal_ends_one(warm: WarmStart, tmp_path: Path) -> None:
    wait = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    waiting, killed = (warm.program(wait, str(tmp_path / "go")) for _ in range(2))
    assert waiting.pid != killed.pid
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=0.1)
    assert waiting.poll() is None and os.getsid(waiting.pid) == waiting.pid
    (tmp_path / "go").touch()
    assert waiting.wait(timeout=60) == 0


def test_ctrl_c_reaches_the_code(warm: WarmStart, tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    process = warm.program(code, str(tmp_path / "begun"))
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("interrupted\n", "")
