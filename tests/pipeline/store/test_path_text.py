"""Paths as text: bytes that are not UTF-8 are escaped, and every path comes back."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.store.path_text import escape, from_text, to_text


@given(st.lists(st.sampled_from([b"\\", b"x", b"5c", b"e9", b"\xe9", b"\xc3\xa9", b"/", b"\xff", b"a"])).map(b"".join))
@example(b"caf\xe9/1.png")
@example(b"\\x5c\xe9\\xe9")
def test_every_path_has_one_printable_text(path: bytes) -> None:
    text = to_text(os.fsdecode(path))
    assert os.fsencode(from_text(text)) == path
    assert text.encode("utf-8").decode("utf-8") == text
    assert escape(text) == text  # what a user gives back stays


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"cat/1.png", "cat/1.png"),
        ("\u00e9t\u00e9/e\u0301.png".encode(), "\u00e9t\u00e9/e\u0301.png"),  # both forms of Unicode stay as they are
        (b"a\\b\\x7a.png", "a\\b\\x7a.png"),
        (b"caf\xe9/1.png", "caf\\xe9/1.png"),
        (b"caf\\xe9/1.png", "caf\\x5cxe9/1.png"),
        (b"\xff\xfe", "\\xff\\xfe"),
    ],
)
def test_ordinary_names_are_their_own_text(path: bytes, text: str) -> None:
    assert to_text(os.fsdecode(path)) == text
