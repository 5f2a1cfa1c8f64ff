"""Differences between Linux and macOS: memory limit, open files, socket paths; and the message on Windows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.services import process, services
from flows.terminal import memory
from flows.terminal.memory import StageMeter
from pipeline import operating_system

ROOT = Path(__file__).parents[2]
# The other way, that of macOS, works on both.
ENFORCED = pytest.param(
    "linux", marks=pytest.mark.skipif(sys.platform == "darwin", reason="platform: macOS does not enforce RLIMIT_AS")
)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_product_reads_nothing_below_proc() -> None:
    files = [path for package in ("pipeline", "igpt_model", "flows") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    # The launcher does without where it is not.
    reading = [path.relative_to(ROOT).as_posix() for path in files if re.search(r"""["'f]/proc\b""", path.read_text())]
    assert reading == ["flows/prefect_ops/launcher.py"]


@pytest.mark.parametrize("platform", [ENFORCED, "darwin"])
def test_a_process_that_outgrows_its_bound_is_stopped_and_one_that_does_not_goes_on(platform: str) -> None:
    code = f"""
import time
from pipeline.operating_system import bound_memory
bound_memory(300 << 20, {platform!r})
held = bytearray(100 << 20)
time.sleep(0.1)
print("fits", flush=True)
try:
    more = bytearray(b"x") * (500 << 20)
    time.sleep(10)
    print("too much")
except MemoryError:
    print("refused")
"""
    ended = run_python(code)
    expected = {"linux": (0, "fits\nrefused\n"), "darwin": (operating_system.OUT_OF_MEMORY_STATUS, "fits\n")}
    assert (ended.returncode, ended.stdout) == expected[platform], ended.stderr


@pytest.mark.parametrize(
    ("soft", "hard", "after"), [(256, 20_000, 10_240), (256, 4096, 4096), (12_000, 20_000, 12_000)]
)
def test_the_limit_on_open_files_is_raised_and_never_lowered(soft: int, hard: int, after: int) -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from pipeline.operating_system import allow_open_files
allow_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    assert run_python(code).stdout.split() == [str(after), str(hard)]


def test_the_folder_of_ray_is_short_and_without_links_where_the_temporary_one_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS $TMPDIR is /var/folders/xx/.../T/, 49 bytes, and both /var and /tmp are links into /private."""
    real, link = tmp_path / "a folder with a long name" / "T", tmp_path / "T"
    real.mkdir(parents=True)
    link.symlink_to(real)
    monkeypatch.setattr(services.tempfile, "gettempdir", lambda: str(link))
    folder = services.short_folder(tmp_path)
    # 70 is what Ray puts below it, 104 what a socket's path may have on macOS.
    assert len(os.fsencode(folder / "r")) + 70 < 104
    assert folder.parent == Path("/tmp").resolve()
    monkeypatch.setattr(services.tempfile, "gettempdir", lambda: "/var/tmp")
    assert services.short_folder(tmp_path).parent == Path("/var/tmp").resolve()


def test_a_process_of_ray_is_known_by_its_command_line_where_its_name_does_not_tell(tmp_path: Path) -> None:
    """On macOS the name of a process is its program's, whatever title it gives itself."""
    (tmp_path / "agent.log").touch()
    code = "import sys; log = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = ["ray::agent", "-c", code, str(tmp_path / "agent.log")]
    with subprocess.Popen(
        command, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": "/bin"}
    ) as agent:
        assert agent.stdout is not None and agent.stdout.readline() == b"open\n"
        assert not psutil.Process(agent.pid).name().startswith("ray::")
        assert [one.pid for one in process.service_processes(tmp_path / "home", ["ray"], tmp_path)] == [agent.pid]
        assert process.service_processes(tmp_path / "home", ["ray"], tmp_path / "another") == []
        agent.communicate()


def test_memory_is_told_where_the_system_keeps_proportional_sizes_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(of: psutil.Process) -> None:
        raise psutil.AccessDenied(of.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    monkeypatch.setattr(memory, "_INTERVAL_SECONDS", 0.1)
    meter = StageMeter()
    with meter.measure("here"):
        held = bytearray(b"x") * (100 << 20)
    assert meter.costs["here"].peak_memory_bytes > len(held)


@pytest.mark.parametrize("module", ["flows.cli.__main__", "igpt_model.train"])
def test_windows_is_told_what_to_use_before_anything_is_imported_that_it_lacks(module: str) -> None:
    code = f"""
import runpy, sys
sys.platform = "win32"
sys.modules.update(dict.fromkeys(("fcntl", "resource", "pwd", "termios")))  # importing one raises ImportError now
runpy.run_module({module!r}, run_name="__main__")
"""
    ended = run_python(code)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert ended.stderr.splitlines() == [f"igpt: {operating_system.ON_WINDOWS}"]
