"""The worked rerun of docs/data.md, run exactly as written: every command, and its output."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.services.local_stack import Stack
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.services

_PROGRESS = re.compile(r"\([0-9]+ s\)$")


def worked_rerun() -> list[tuple[str, list[str]]]:
    """The commands of the page's console block with the lines that it shows below each."""
    block = (ROOT / "docs" / "data.md").read_text().split("```console\n")[1].split("```")[0]
    steps: list[tuple[str, list[str]]] = []
    in_document = False
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
            in_document = line.endswith("<<END")
        elif in_document:
            steps[-1] = (f"{steps[-1][0]}\n{line}", [])
            in_document = line != "END"
        else:
            steps[-1][1].append(line)
    return steps


def test_the_worked_rerun_prints_what_the_page_shows(stack: Stack, tmp_path: Path) -> None:
    steps = worked_rerun()
    assert len(steps) == 14
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command, expected in steps:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        shown = [line for line in done.stdout.splitlines() if not _PROGRESS.search(line)]
        if "..." in expected:
            expected = expected[: expected.index("...")]
            shown = shown[: len(expected)]
        assert shown == expected, command
