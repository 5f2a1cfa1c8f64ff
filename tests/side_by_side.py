"""Three runs of pytest side by side: two on services of their own that serve many tests, and the rest.

    python -m tests.side_by_side [OPTION ...] -m MARKERS

All wait for much. What the second and the third print comes when they have ended.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack

_PARTS = ("refreshed", "stack and not refreshed", "not stack")
_NO_TESTS = 5  # pytest's exit status


def main(*arguments: str) -> int:
    """Run all parts; the exit status of the first that failed, or 0."""
    *options, markers = arguments
    command = [sys.executable, "-m", "pytest", *options]
    codes = []
    with ExitStack() as files:
        outputs = [None, *(files.enter_context(tempfile.TemporaryFile("w+")) for _ in _PARTS[1:])]
        runs = [
            subprocess.Popen([*command, f"{part} and ({markers})"], stdout=output, stderr=subprocess.STDOUT)
            for part, output in zip(_PARTS, outputs, strict=True)
        ]
        for run, output in zip(runs, outputs, strict=True):
            codes.append(_wait(run))
            if output is not None:
                output.seek(0)
                print(output.read(), flush=True)
    # Not every part has tests of those asked for.
    failed = [code for code in codes if code and code != _NO_TESTS]
    return failed[0] if failed else min(codes)


def _wait(process: subprocess.Popen) -> int:
    """The exit status. Ctrl-C reaches the process too, which then ends the services of its tests: wait for that."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
