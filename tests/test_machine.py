"""A test that this machine cannot run is skipped, counted with its reason, and forbidden where all must run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from igpt_model.training import compiler

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest
from tests import machine

machine.REQUIREMENTS["lever"] = lambda: "there is no lever: install one"
machine.REQUIREMENTS["floor"] = lambda: None

@pytest.mark.needs("floor", "lever")
def test_with_a_lever(): raise AssertionError("there is no lever")

@pytest.fixture
def lever(): machine.require("lever")

@pytest.mark.parametrize("case", [1, 2])
def test_with_a_fixture(lever, case): raise AssertionError("there is no lever")

@pytest.mark.skipif(True, reason="GPU: it needs one")
def test_on_a_gpu(): raise AssertionError("there is no GPU")

@pytest.mark.skipif(True, reason="platform: it needs a Mac")
def test_on_a_mac(): raise AssertionError("this is no Mac")

@pytest.mark.needs("floor")
def test_that_runs(): pass
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-ra",
        "-p",
        "tests.machine",
        "--rootdir",
        str(folder),
        *arguments,
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code", "forbidden"),
    [((), 0, False), (("--all-must-run",), 1, True), (("--all-must-run", "-k", "gpu or mac or runs"), 0, False)],
)
def test_what_is_missing_is_told(arguments: tuple[str, ...], code: int, forbidden: bool, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = needs\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    done = run(tmp_path, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    *_, summary, end = done.stdout.splitlines()
    assert "1 because GPU: it needs one; 1 because platform: it needs a Mac" in summary
    missing = "because there is no lever: install one"
    assert (f"skipped: 3 {missing}" in summary) is ("-k" not in arguments)
    assert (f"no test may be skipped {missing}" in done.stdout) is forbidden
    assert "1 passed" in end


def test_one_list_has_the_debian_packages_that_messages_and_the_docs_name() -> None:
    text = (ROOT / "infra" / "debian-packages.txt").read_text()
    packages = set(re.sub("#.*", "", text).split())
    named = set(compiler.INSTALL.removeprefix("on Debian install ").partition(",")[0].split())
    assert named == {"g++", "libc6-dev", "python3-dev"} and named <= packages
    page = (ROOT / "docs" / "install.md").read_text()
    assert packages <= set(" ".join(re.findall(r"`([^`\n]*)`", page)).split())
