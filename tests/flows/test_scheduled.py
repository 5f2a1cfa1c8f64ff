"""When the last image arrived, and progress as lines of a run's log. The flows themselves are in integration/."""

import logging
import os
import time
from pathlib import Path

import pytest

from flows.scheduled import _LoggedLines, _seconds_since_last


def test_the_newest_object_decides(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old", 5000), ("class/newest", 100), ("class/older", 900)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (now - age, now - age))
    assert _seconds_since_last(str(tmp_path)) == pytest.approx(100, abs=20)


def test_each_line_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    lines = _LoggedLines(logging.getLogger("of the run"))
    with caplog.at_level(logging.INFO):
        lines.write("  dataset: list 100% images\n\n  done\n")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("of the run", "dataset: list 100% images"),
        ("of the run", "done"),
    ]
