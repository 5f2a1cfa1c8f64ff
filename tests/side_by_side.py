"""Runs four pytest processes side by side: three that each share a stack between many tests, and the rest.

    python -m tests.side_by_side [OPTION ...] -m MARKERS

They spend some of their time waiting. The output of all but the first is printed when they have ended, and after it a
line for a part that has failed. A part that crashes prints where.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack

from tests.rigs import databases

STACK_FOLDER = "tests/integration"
# What each part selects, and the folder that it collects (which takes seconds).
_PARTS = (
    ("refreshed", STACK_FOLDER),
    ("production", STACK_FOLDER),
    ("stack and not (refreshed or production)", STACK_FOLDER),
    ("not (stack or refreshed or production)", "tests"),
)
_NO_TESTS = 5  # pytest's exit status


def main(*arguments: str) -> int:
    """Run all parts; returns the exit status of the first that failed, or 0."""
    *options, markers = arguments
    # Without the option, pytest prints where a process crashed only until its last test has ended.
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.run_pytest", *options]
    codes = []
    with ExitStack() as files:
        folder_of_databases = files.enter_context(tempfile.TemporaryDirectory(prefix="igpt-databases-"))
        outputs = [None, *(files.enter_context(tempfile.TemporaryFile("w+")) for _ in _PARTS[1:])]
        runs = [
            subprocess.Popen(
                [*command, f"{part} and ({markers})", folder],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, databases.VARIABLE: folder_of_databases},
            )
            for (part, folder), output in zip(_PARTS, outputs, strict=True)
        ]
        for run, output in zip(runs, outputs, strict=True):
            codes.append(_wait(run))
            if output is not None:
                output.seek(0)
                print(output.read(), flush=True)
    # The markers may select no test of a part.
    failed = {part: code for (part, _), code in zip(_PARTS, codes, strict=True) if code and code != _NO_TESTS}
    for part, code in failed.items():
        print(f"The tests `{part}` {_ending(code)}.", flush=True)
    return next(iter(failed.values()), min(codes))


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code > 0:
        return f"ended with exit status {code}"
    return f"were ended by signal {-code} ({signal.strsignal(-code)})"


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the exit status, also after Ctrl-C, which makes the process end the services of its tests."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
