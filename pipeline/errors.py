"""The error type for input that the user can correct, and how errors are quoted; anything else that raises is a bug."""


class IgptError(Exception):
    """Bad input or an unusable service. The message is one line: the value, what was allowed, what to do.

    The command line prints it and exits with status 2, without a traceback.
    """


def first_line(error: BaseException, length: int = 300) -> str:
    """The first line of an error's text, cut to `length` characters; its type's name when it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
