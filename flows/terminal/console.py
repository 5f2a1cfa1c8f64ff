"""What the command line prints, line by line, and the progress of a stage: on a terminal in place, elsewhere in lines.

Every line goes through `printable`: text from outside is never interpreted, by this program or by the terminal.
"""

import os
import sys
import time
from contextlib import suppress
from typing import TextIO

from rich.cells import cell_len

from pipeline.errors import IgptError
from pipeline.printable import printable
from pipeline.progress import in_words

_PLAIN_SECONDS = 10.0  # between two plain lines
_WIDTH = 80  # of what is no terminal


class OutputError(IgptError):
    """Standard output cannot be written, for example because its disk is full."""


class OutputClosedError(OutputError):
    """Whoever read standard output has ended, as `head` does."""


def write(file: TextIO | None, text: str) -> None:
    """Write a text as it is, and flush it; nothing where the caller has closed the stream (None).

    Raises OutputClosedError, or OutputError with the reason.
    """
    if file is None:
        return
    try:
        file.write(text)
        file.flush()
    except BrokenPipeError:
        raise OutputClosedError("standard output was closed") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"standard output: {reason}; send it to a place that can be written") from None


class Console:
    """Prints lines to standard output, or to standard error in commands whose standard output is JSON."""

    def __init__(self) -> None:
        self.stderr = False
        self.redirected: TextIO | None = None
        """A file that takes the lines instead."""

    @property
    def file(self) -> TextIO | None:
        """Where lines go; None where the caller has closed the stream."""
        return self.redirected or (sys.stderr if self.stderr else sys.stdout)

    @property
    def is_terminal(self) -> bool:
        """Whether a person sees the lines appear."""
        return self.file is not None and self.file.isatty()

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        with suppress(OSError, ValueError, AttributeError):
            return os.get_terminal_size(self.file.fileno()).columns or _WIDTH  # type: ignore[union-attr]
        return _WIDTH

    def print(self, line: str = "") -> None:
        """Print one line. Raises OutputError."""
        write(self.file, f"{printable(line)}\n")

    def overwrite(self, line: str) -> None:
        """Print one line over the last one of a terminal, cut to its width. Raises OutputError."""
        shown = printable(line)[: self.width]
        while shown and cell_len(shown) >= self.width:
            shown = shown[:-1]
        write(self.file, f"\r\x1b[K{shown}")


console = Console()


class Reporter:
    """A Progress that writes to the console, if that can be written. The last line of a finished step stays."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._step = ""
        self._line = ""
        self._last_text = ""  # the plain line printed last, without the time
        self._began = self._printed = time.monotonic()
        self._in_place = console.is_terminal

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        if step != self._step:
            self._finish_line()
            self._step, self._began, self._printed = step, now, now
        text = in_words(f"{self._stage}: {step}", done, total, detail)
        if text == self._last_text:
            return
        self._line = f"  {text} ({now - self._began:.0f} s)"
        if self._in_place:
            self._overwrite(self._line)
        elif now - self._printed >= _PLAIN_SECONDS:
            self._print(self._line)
            self._printed, self._line, self._last_text = now, "", text

    def say(self, line: str) -> None:
        """Print a line that is not overwritten."""
        self._finish_line()
        self._print(f"  {self._stage}: {line}")

    def close(self) -> None:
        """Finish the running step; its last line stays."""
        self._finish_line()
        self._step = ""

    def _finish_line(self) -> None:
        if self._line:
            if self._in_place:
                self._overwrite(self._line)
                self._print("")
            else:
                self._print(self._line)
        self._line = ""

    # A stage goes on when nobody reads its progress any more.

    @staticmethod
    def _overwrite(line: str) -> None:
        with suppress(OutputError):
            console.overwrite(line)

    @staticmethod
    def _print(line: str) -> None:
        with suppress(OutputError):
            console.print(line)
