"""One line of an error for a message."""

import errno
import pickle

import pytest

from pipeline.errors import IgptError, UnforeseenError, first_line, system_error_line, unforeseen_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\n"), "one"),
        (ValueError(""), "ValueError"),
        (ValueError("\n \n"), "ValueError"),
        (AssertionError(), "AssertionError"),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
        (ValueError("x" * 1000), "x" * 300),
        (ValueError("\x1b[31mred"), r"\x1b[31mred"),
    ],
)
def test_an_error_is_quoted_in_one_line_even_when_it_has_no_text(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_message_is_one_line_whatever_it_quotes_also_in_another_process() -> None:
    error = IgptError("raw is 'a\nb\x1b[2J': nothing is there")
    assert str(error) == r"raw is 'a\nb\x1b[2J': nothing is there"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 (as Ray does it)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/d/x"),
            "/d/x: No space left on device; free some space on the disk",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", b"/d/\xe9"),
            r"b'/d/\xe9': Permission denied; check its owner and mode",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/d/\n"),
            r"/d/\n: Permission denied; check its owner and mode",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "a file: No space left on device; free some space on the disk",
        ),
        (OSError(errno.EISDIR, "Is a directory", "a", None, "b"), "a and b: Is a directory; give a file"),
        (OSError(errno.ECONNRESET, "Connection reset by peer"), None),
        (OSError("no number"), None),
    ],
)
def test_errors_of_the_system_name_the_file_and_what_to_do(error: OSError, line: str | None) -> None:
    assert system_error_line(error) == line


class TaskError(Exception):
    """As Ray wraps what a task raised."""

    cause = KeyError("width")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\n  two\x1b[0m"), r"ValueError: one two\x1b[0m"),
        (RuntimeError(), "RuntimeError"),
        (TaskError("Traceback ...\n  File ..."), "KeyError: 'width'"),
        (UnforeseenError("KeyError: 'width'"), "KeyError: 'width'"),
    ],
)
def test_a_bug_is_told_in_one_line(error: Exception, line: str) -> None:
    assert unforeseen_line(error) == line
