r"""Paths and keys as text: a byte that is not UTF-8 is written \xNN, so that every file has one printable, exact name.

Python has such bytes as lone surrogates, which neither JSON nor Arrow nor a terminal takes. A name that holds the four
characters of such an escape itself has its backslash written \x5c; all other names are their own text.
"""

import re

_ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
_SURROGATE = re.compile(r"[\udc80-\udcff]")


def to_text(path: str) -> str:
    """The text of a path or key that the operating system or an archive gave. `from_text` is the inverse."""
    if path.isascii() and "\\" not in path:
        return path
    return escape(_ESCAPE.sub(r"\\x5cx\1", path))


def escape(path: str) -> str:
    """A path that a user gave: escapes in it stand for bytes already, so only lone surrogates become escapes."""
    if path.isascii():
        return path
    return _SURROGATE.sub(lambda match: f"\\x{ord(match.group()) - 0xDC00:02x}", path)


def from_text(text: str) -> str:
    """The path that a text stands for, as functions of `os` take it."""
    if "\\x" not in text:
        return text
    return _ESCAPE.sub(lambda match: bytes.fromhex(match.group(1)).decode("ascii", "surrogateescape"), text)
