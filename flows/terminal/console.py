"""Progress output of a stage: one line updated in place on a terminal, plain lines at intervals elsewhere."""

import time

from rich.console import Console
from rich.text import Text

_PLAIN_SECONDS = 10.0  # between two plain lines

console = Console(highlight=False, soft_wrap=True)


class Reporter:
    """A Progress that writes to the console. The last line of a finished step stays."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._step = ""
        self._line = ""
        self._last_text = ""  # the plain line printed last, without the time
        self._began = self._printed = time.monotonic()
        self._in_place = console.file.isatty()

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        if step != self._step:
            self._finish_line()
            self._step, self._began, self._printed = step, now, now
        count = f"{done:,} of {total:,} {detail}" if total else f"{done:,} {detail}" if done else detail
        text = " ".join(f"  {self._stage}: {step} {count}".split())
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
                console.file.write("\n")
            else:
                self._print(self._line)
        self._line = ""

    @staticmethod
    def _overwrite(line: str) -> None:
        console.file.write("\r\x1b[K" + line[: max(20, console.width - 1)])
        console.file.flush()

    @staticmethod
    def _print(line: str) -> None:
        console.print(Text(line))
