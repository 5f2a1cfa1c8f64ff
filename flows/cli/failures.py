"""How a command ends that failed: one line for each kind of error, and a file with the traceback of what is a bug."""

import sys
import tempfile
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from typer.exceptions import TyperException

from flows import version
from pipeline.errors import IgptError, first_line, system_error_line, unforeseen_line
from pipeline.printable import printable

BAD_INPUT = 2
UNFORESEEN = 1


def describe(error: Exception, home: Path) -> tuple[str, int]:
    """One line on why a command failed, and its exit status; the traceback of a bug is kept in a file."""
    if isinstance(error, TyperException):  # an unknown option, a missing argument and the like
        return _usage(error), error.exit_code
    if isinstance(error, IgptError):
        return str(error), BAD_INPUT
    if isinstance(error, OSError) and (line := system_error_line(error)) is not None:
        return line, BAD_INPUT
    if isinstance(error, MemoryError):
        return f"the memory does not suffice ({first_line(error)}); ask for less at a time", UNFORESEEN
    return f"unforeseen {unforeseen_line(error)}; this is a bug, {_kept(error, home)}", UNFORESEEN


def is_help(error: TyperException) -> bool:
    """Whether an error stands for the help of a command that was given nothing, as in `igpt dataset`."""
    return type(error).__name__ == "NoArgsIsHelpError"  # of a private module of Typer's, which asks in the same way


def _usage(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    words = printable(" ".join(error.format_message().split())).rstrip(".")
    return words if context is None else f"{words}; `{context.command_path} --help` shows the options"


def _kept(error: Exception, home: Path) -> str:
    """Keep the traceback in a file, readable only by this user, and say where it is."""
    now = datetime.now(UTC)
    head = f"{now:%Y-%m-%d %H:%M:%S} UTC, {version.DISTRIBUTION} {version.version()}, Python {sys.version.split()[0]}"
    lines = [head, " ".join(sys.argv), *"".join(traceback.format_exception(error)).splitlines()]
    text = "".join(f"{printable(line)}\n" for line in lines)
    for folder in (home / "logs", Path(tempfile.gettempdir())):
        with (
            suppress(OSError),
            tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", prefix=f"error-{now:%Y%m%d-%H%M%S}-", suffix=".txt", dir=folder, delete=False
            ) as file,
        ):
            file.write(text)
            return f"report it with its traceback in {printable(file.name)}"
    return "its traceback cannot be kept: no space in the folder for temporary files"
