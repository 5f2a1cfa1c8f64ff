"""Two runs of pytest side by side: the tests on the stack that serves all of them, and those that start their own.

    python -m tests.side_by_side [OPTION ...] -m MARKERS

Both wait for much. What the second prints comes when both have ended.
"""

import subprocess
import sys
import tempfile

_NO_TESTS = 5  # pytest's exit status


def main(*arguments: str) -> int:
    """Run both; the exit status of the first that failed, or 0."""
    *options, markers = arguments
    command = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile("w+") as output:
        beside = subprocess.Popen([*command, f"not stack and ({markers})"], stdout=output, stderr=subprocess.STDOUT)
        shown = subprocess.Popen([*command, f"stack and ({markers})"])
        codes = [_wait(shown), _wait(beside)]
        output.seek(0)
        print(output.read())
    # One half may have no test of those asked for.
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
