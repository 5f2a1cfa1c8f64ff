"""Progress output: one line updated in place on a terminal, plain lines at intervals elsewhere."""

import errno
import io
import os
import sys

import pytest

from flows.terminal import console
from flows.terminal.console import OutputClosedError, OutputError, Reporter


class Clock:
    """A clock set by the test."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_without_a_terminal_a_step_prints_a_line_every_ten_seconds_and_one_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter("pretrain")
    for second in range(23):
        clock.now = 100.0 + second
        reporter("train", second, 22, "steps")
    reporter("draw", 0, 0, "pictures")
    reporter.say("done")
    assert capsys.readouterr().out.splitlines() == [
        "  pretrain: train 10 of 22 steps (10 s)",
        "  pretrain: train 20 of 22 steps (20 s)",
        "  pretrain: train 22 of 22 steps (22 s)",
        "  pretrain: draw pictures (0 s)",
        "  pretrain: done",
    ]


def test_an_unchanged_line_is_not_printed_again(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter("pretrain")
    reporter("train", 4, 5, "steps")
    for _ in range(4):
        clock.now += 10
        reporter("train", 5, 5, "steps")
    reporter.close()
    assert capsys.readouterr().out == "  pretrain: train 5 of 5 steps (10 s)\n"


def test_on_a_terminal_one_line_is_updated_in_place(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    reporter = Reporter("dataset")
    for done in (1000, 2000):
        clock.now += 1
        reporter("list", done, 0, "images")
    reporter.close()
    written = capsys.readouterr().out
    assert written.count("\n") == 1
    assert written.split("\r\x1b[K")[1:3] == [
        "  dataset: list 1,000 images (0 s)",
        "  dataset: list 2,000 images (1 s)",
    ]


def test_what_a_line_quotes_is_neither_interpreted_nor_another_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.console.print("[red]a[/i] :cat:\n\x1b[2J\u202e")
    reporter = Reporter("data\nset")
    reporter("scan\r", 1, 2, "\x1b]0;title\x07")
    reporter.say("new class [/i]\x9b")
    assert capsys.readouterr().out.splitlines() == [
        r"[red]a[/i] :cat:\n\x1b[2J\u202e",
        r"  data set: scan 1 of 2 \x1b]0;title\x07 (0 s)",
        r"  data\nset: new class [/i]\x9b",
    ]


@pytest.mark.parametrize("columns", [1, 12, 40])
def test_a_line_that_is_updated_in_place_fits_the_terminal(
    columns: int, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    Reporter("dataset")("猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫\n", 1, 2, "images")
    (shown,) = capsys.readouterr().out.split("\r\x1b[K")[1:]
    assert console.cell_len(shown) < columns


class Failing(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "kind"), [(errno.EPIPE, OutputClosedError), (errno.ENOSPC, OutputError)])
def test_a_command_ends_where_its_output_cannot_be_written_and_a_stage_goes_on(
    number: int, kind: type[OutputError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.console, "redirected", Failing(number))
    reporter = Reporter("pretrain")
    reporter("train", 1, 2, "steps")
    reporter.say("goes on")
    reporter.close()
    with pytest.raises(kind):
        console.console.print("a line")


def test_nothing_is_printed_where_the_caller_closed_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    Reporter("dataset").say("done")
    console.console.print("a line")
    assert not console.console.is_terminal
