"""How the program ends: 0, 1 for a no, 2 for bad input, 130 for Ctrl-C, each with at most one line."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli import main
from flows.config.describe import KINDS, describe
from flows.services.local_stack import ServiceStatus
from flows.terminal.console import OutputClosedError
from pipeline.errors import IgptError
from tests.conftest import Command

Igpt = Callable[..., Command]
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["config", "nothing"],
            "'nothing' has no config: choose one of refresh, dataset, pretrain, probe, evaluate, batch, promotion",
        ),
        (["pretrain", "runs=r", "steps=many"], "igpt: optimizer.steps is 'many': it must be a whole number"),
        (["pretrain", "--config", "gone.yaml"], "igpt: gone.yaml: No such file"),
        (["demo", "--raw", "gone"], "gone: nothing is there"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], expected: str, igpt: Igpt) -> None:
    ended = igpt(*arguments)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert expected in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "No such command 'nothing'; `"),
        (["up", "--nothing"], "No such option: --nothing"),
        (["config", "dataset", "more"], "Got unexpected extra argument(s) (more)"),
        (["dataset", "sample", "d", "--images", "0"], "Invalid value for '--images'"),
        (["x\n\x1b[2J"], r"No such command 'x\n\x1b[2J'"),
        (["dataset", "show", "d", "9" * 5000], "Invalid value for '[SNAPSHOT]'"),
        (["dataset", "gc", "d", "--min-age-hours", "nan"], "Invalid value for '--min-age-hours'"),
        (["dataset", "gc", "d", "--min-age-hours", "inf"], "inf is not a number to compare with"),
        (["sample", "-m", "m", "--seed", "-1"], "Invalid value for '--seed'"),
    ],
)
def test_what_the_command_line_does_not_know_exits_with_two(arguments: list[str], told: str, igpt: Igpt) -> None:
    ended = igpt(*arguments)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("igpt: ") and told in line and line.endswith("--help` shows the options")


@pytest.mark.parametrize("group", ["dataset", "models", "runs", "backup"])
def test_a_group_of_commands_alone_prints_its_help(group: str, igpt: Igpt) -> None:
    ended = igpt(group)
    assert ended.code == 2 and f"{group} [OPTIONS] COMMAND" in ended.out + ended.err


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (IgptError("no room"), 2, "igpt: no room"),
        (KeyboardInterrupt(), 130, "igpt: interrupted; finished work is kept, and the same command continues it"),
        (typer.Abort(), 130, "igpt: interrupted; finished work is kept, and the same command continues it"),
        (typer.Exit(3), 3, ""),
        (OutputClosedError("closed"), 141, ""),
        (PermissionError(13, "Permission denied", "/d"), 2, "igpt: /d: Permission denied; check its owner and mode"),
    ],
)
def test_how_a_command_ends(
    outcome: BaseException, code: int, line: str, igpt: Igpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise outcome

    monkeypatch.setattr(main.local_stack, "down", end)
    ended = igpt("down")
    assert (ended.code, ended.out, ended.err.strip()) == (code, "", line)


def test_a_bug_is_one_line_and_a_file(igpt: Igpt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("two\n[/i] lines")

    (tmp_path / "home" / "logs").mkdir(parents=True)
    monkeypatch.setattr(main.local_stack, "down", fail)
    ended = igpt("down")
    (line,) = ended.err.splitlines()
    assert (ended.code, ended.out) == (1, "") and line.startswith("igpt: unforeseen RuntimeError: two [/i] lines; ")
    assert "in fail" in Path(line.rpartition(" ")[2]).read_text()


@pytest.mark.parametrize(
    ("shell", "code", "told"),
    [
        ("set -o pipefail; $IGPT config refresh | true", 141, ""),
        ("set -o pipefail; $IGPT --help | true", 1, ""),
        ("$IGPT config refresh > /dev/full", 2, "igpt: standard output: No space left on device"),
        ("$IGPT config refresh >&-", 0, ""),
        ("$IGPT config nothing 2>&-", 2, ""),
        ("$IGPT config refresh <&- | head -n 1", 0, ""),
        ("mkdir gone; cd gone; rmdir ../gone; $IGPT status", 2, "igpt: the working directory does not exist any more"),
        ("IGPT_HOME= $IGPT status", 1, ""),
        ("touch file; IGPT_HOME=file $IGPT status", 2, "/file is not a folder; give one with --home or IGPT_HOME"),
        ("ln -s loop loop; IGPT_HOME=loop $IGPT status", 2, "loop: a loop of links; give another folder"),
        ("ln -s loop loop; $IGPT dataset ls loop", 2, "loop: not a path"),
        ("$IGPT dataset ls ''", 2, "a path or URL is empty"),
        ("$IGPT dataset ls ~nobody-at-all/x", 2, "~nobody-at-all/x: not a path"),
        ("AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b $IGPT dataset ls 's3://no bucket/x'", 2, "not an S3 URL"),
        (
            "MLFLOW_TRACKING_URI=http://c RAY_ADDRESS=d PREFECT_API_URL='http://a b' $IGPT pretrain runs=r",
            2,
            "Prefect at http://a b does not answer",
        ),
        ("printf 'raw: \\377' > c.yaml; $IGPT dataset build -c c.yaml", 2, "c.yaml: byte 6 is not UTF-8 text"),
        (
            "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $IGPT dataset ls $'gr\\xc3\\xb6\\xff'",
            2,
            "no dataset snapshot there",
        ),
    ],
)
def test_how_the_program_ends_whatever_its_surroundings(shell: str, code: int, told: str, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "flows.cli"]
    script = shell.replace("$IGPT", shlex.join(program))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("IGPT_", "PREFECT_", "AWS_"))
    }
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, errors="replace", check=False, timeout=120,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    assert len(ended.stderr.splitlines()) == bool(told) and told in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stdout


@pytest.mark.parametrize(
    ("answers", "code"), [([], 1), ([True, True], 0), ([True, False], 1)], ids=["none", "all", "one"]
)
def test_status_exits_with_one_unless_all_answer(
    answers: list[bool], code: int, igpt: Igpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = [
        ServiceStatus(name=f"s{number}", url="http://u", pid=1, answers=answer, detail="" if answer else "it has ended")
        for number, answer in enumerate(answers)
    ]
    monkeypatch.setattr(main.local_stack, "status", lambda home: statuses)
    ended = igpt("status")
    assert ended.code == code
    assert ("it has ended" in ended.out) == (False in answers)
    assert ("No services were started here" in ended.out) == (not answers)


@pytest.mark.parametrize("kind", KINDS)
def test_config_prints_every_kind(kind: str, igpt: Igpt) -> None:
    ended = igpt("config", kind)
    assert (ended.code, ended.out) == (0, describe(KINDS[kind]))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models:/igpt@candidate", "igpt-candidate"),
        ("s3://runs/demo/tiny-0a1b/", "s3-runs-demo-tiny-0a1b"),
        ("../..", "model"),
        ("", "model"),
        ("../../etc/<a>\n", "etc-a"),
        ("/" + "x" * 300, "x" * 80),
    ],
)
def test_a_report_has_a_folder_within_that_of_the_services(model: str, name: str, tmp_path: Path) -> None:
    assert main._report_folder(tmp_path, model) == tmp_path / "reports" / name
