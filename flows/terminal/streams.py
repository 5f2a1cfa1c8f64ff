"""Standard input, output and error in a state in which a program can print whatever the caller made of them."""

import io
import os
import sys
from contextlib import suppress


def prepare() -> None:
    """Print characters that the locale lacks as escapes, and open streams that the caller has closed on /dev/null."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # otherwise the next file that is opened gets its number, and the output of child processes
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon() -> None:
    """Discard what was not yet written, after an error in writing; Python would try once more at its end, and fail."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, stream.fileno())
                os.close(sink)
