"""How the program ends: 0, 1 for a no, 2 for bad input, 130 for Ctrl-C, each with at most one line."""

from collections.abc import Callable
from typing import Any

import pytest
import typer

from flows.cli import main
from flows.config.describe import KINDS, describe
from flows.services.local_stack import ServiceStatus
from pipeline.errors import IgptError
from tests.conftest import Command

Igpt = Callable[..., Command]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["config", "nothing"],
            "igpt: 'nothing' has no config: choose one of refresh, dataset, pretrain, probe, promotion",
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


@pytest.mark.parametrize("arguments", [["nothing"], ["up", "--nothing"], ["config", "dataset", "more"]])
def test_what_the_command_line_does_not_know_exits_with_two(arguments: list[str], igpt: Igpt) -> None:
    ended = igpt(*arguments)
    assert (ended.code, ended.out) == (2, "") and "Usage" in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (IgptError("no room"), 2, "igpt: no room"),
        (KeyboardInterrupt(), 130, "igpt: interrupted; finished work is kept, and the same command continues it"),
        (typer.Abort(), 130, "igpt: interrupted; finished work is kept, and the same command continues it"),
        (typer.Exit(3), 3, ""),
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
