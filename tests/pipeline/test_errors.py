"""One line of an error for a message."""

import pytest

from pipeline.errors import first_line


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
    ],
)
def test_an_error_is_quoted_in_one_line_even_when_it_has_no_text(error: Exception, line: str) -> None:
    assert first_line(error) == line
