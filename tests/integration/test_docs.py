"""The pages of commands in docs/, run exactly as written: every command, and its output."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flows.services.local_stack import Stack
from pipeline.store import objects
from tests.conftest import Command
from tests.integration.conftest import ROOT, ended, python

pytestmark = pytest.mark.services

_PROGRESS = re.compile(r"\([0-9]+ s\)$")
# The command line in another folder, in a process that has the libraries imported already.
_IGPT = "import os, sys; os.chdir(sys.argv.pop(1)); from flows.cli.main import main; main()"


def steps_of(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page's console blocks with the lines that it shows below each."""
    blocks = (ROOT / "docs" / page).read_text().split("```console\n")[1:]
    steps: list[tuple[str, list[str]]] = []
    in_document = False
    for line in "".join(block.split("```")[0] for block in blocks).splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
            in_document = line.endswith("<<END")
        elif in_document:
            steps[-1] = (f"{steps[-1][0]}\n{line}", [])
            in_document = line != "END"
        else:
            steps[-1][1].append(line)
    return steps


def run(command: str, folder: Path) -> Command:
    """Run a command of a page in a folder."""
    if command.startswith("igpt "):
        return ended(python(_IGPT, str(folder), *shlex.split(command)[1:]))
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Command(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.mark.parametrize(("page", "commands"), [("data.md", 14), ("bring-your-own-images.md", 39)])
def test_a_page_prints_what_it_shows(page: str, commands: int, stack: Stack, tmp_path: Path) -> None:
    for url in ("s3://raw/photos-of-mine", "s3://datasets/photos-of-mine"):
        objects.delete_tree(url)
    steps = steps_of(page)
    assert len(steps) == commands
    for command, expected in steps:
        done = run(command, tmp_path)
        assert done.code == 0, done.out + done.err
        assert done.err == ""
        lines = done.out.replace(str(tmp_path), "/home/you").splitlines()
        shown = [line for line in lines if not _PROGRESS.search(line)]
        if "..." in expected:
            expected = expected[: expected.index("...")]
            shown = shown[: len(expected)]
        assert shown == expected, command
