"""Progress output: one line updated in place on a terminal, plain lines at intervals elsewhere."""

import sys

import pytest

from flows.terminal import console
from flows.terminal.console import Reporter


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
