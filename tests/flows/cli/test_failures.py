"""What a command says when it fails: one line for each kind of error, and where the traceback of a bug is."""

import errno
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest

from flows.cli.failures import describe
from pipeline.errors import IgptError, UnforeseenError


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (IgptError("raw is empty: give a URL"), "raw is empty: give a URL", 2),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/d/x"),
            "/d/x: No space left on device; free some space on the disk",
            2,
        ),
        (
            MemoryError("Unable to allocate 7 TiB\nmore"),
            "the memory does not suffice (Unable to allocate 7 TiB); ask for less at a time",
            1,
        ),
    ],
)
def test_what_the_user_can_mend_has_no_traceback(error: Exception, line: str, code: int, tmp_path: Path) -> None:
    assert describe(error, tmp_path) == (line, code)
    assert list(tmp_path.iterdir()) == []


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (raised(ValueError("one\n\x1b[2Jtwo")), r"unforeseen ValueError: one \x1b[2Jtwo; this is a bug"),
        (raised(KeyError()), "unforeseen KeyError; this is a bug"),
        (
            raised(OSError(errno.ECONNRESET, "reset")),
            "unforeseen ConnectionResetError: [Errno 104] reset; this is a bug",
        ),
        (raised(RecursionError("too deep")), "unforeseen RecursionError: too deep; this is a bug"),
        (
            raised(UnforeseenError("ValueError: of a flow"), ValueError("of a\nflow")),
            "unforeseen ValueError: of a flow; this is a bug",
        ),
    ],
)
def test_a_bug_is_one_line_and_a_file_with_its_traceback(error: Exception, told: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    line, code = describe(error, tmp_path)
    assert code == 1 and line.startswith(told) and len(line.splitlines()) == 1
    (file,) = (tmp_path / "logs").iterdir()
    assert line.endswith(f"report it with its traceback in {file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert "Traceback (most recent call last)" in text and "in raised" in text and "\x1b" not in text
    assert type(error.__cause__ or error).__name__ in text and re.match(r"\d{4}-.* UTC, igpt-pipeline ", text)


@pytest.mark.parametrize("home", ["gone", "file"])
def test_without_a_folder_of_the_services_the_traceback_is_among_the_temporary_files(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    line, _ = describe(raised(ValueError("x")), tmp_path / home)
    (file,) = (tmp_path / "temporary").iterdir()
    assert str(file) in line


def test_a_traceback_that_cannot_be_kept_leaves_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    line, code = describe(raised(ValueError("x")), tmp_path / "home")
    told = "its traceback cannot be kept: no space in the folder for temporary files"
    assert (code, line) == (1, f"unforeseen ValueError: x; this is a bug, {told}")
