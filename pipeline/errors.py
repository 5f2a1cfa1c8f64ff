"""The error type for input that the user can correct, and how errors are quoted; anything else that raises is a bug."""

import errno

from pipeline.printable import printable

# What to do about an error of the operating system. All others are unforeseen.
_REMEDIES = {
    errno.EACCES: "check its owner and mode",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EISDIR: "give a file",
    errno.ELOOP: "give a path without a loop of links",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENFILE: "end programs that keep many files open",
    errno.ENOSPC: "free some space on the disk",
    errno.ENOTDIR: "give a path whose parents are folders",
    errno.EPERM: "check its owner and mode",
    errno.EROFS: "give a place that is not read-only",
}


class IgptError(Exception):
    """Bad input or an unusable service. The message is one line: the value, what was allowed, what to do.

    What the message quotes is made printable here. The command line prints it and exits with status 2, without a
    traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def first_line(error: BaseException, length: int = 300) -> str:
    """The first line of an error's text, cut to `length` characters; its type's name when it has no text."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])[:length]


def system_error_line(error: OSError) -> str | None:
    """One line on an error of the operating system that the user can mend, such as a full disk; None for others."""
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    place = " and ".join(named) or "a file"
    return printable(f"{place}: {error.strerror or type(error).__name__}; {remedy}")


class NoAnswerError(IgptError):
    """A service does not answer; the same may succeed once it does."""


class UnforeseenError(Exception):
    """Stands for an error that is a bug, with one line on it; the error itself is its cause."""


def unforeseen_line(error: BaseException) -> str:
    """One line on an error that is a bug: its type, and what it says, cut to 300 characters."""
    if isinstance(error, UnforeseenError):
        return str(error)
    origin = getattr(error, "cause", None)  # of Ray's wrappers, whose own text is a traceback
    shown = origin if isinstance(origin, BaseException) else error
    name, text = type(shown).__name__, printable(" ".join(str(shown).split()))[:300]
    return f"{name}: {text}" if text else name
