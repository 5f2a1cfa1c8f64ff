"""Two runs of pytest side by side: the tests on the stack that serves all of them, and those that start their own.

    python -m tests.side_by_side [OPTION ...] -m MARKERS

Both wait for much. What the second prints comes when both have ended.
"""

import subprocess
import sys
import tempfile


def main(*arguments: str) -> int:
    """Run both; the exit status of the first that failed, or 0."""
    *options, markers = arguments
    command = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile("w+") as said:
        beside = subprocess.Popen([*command, f"not stack and ({markers})"], stdout=said, stderr=subprocess.STDOUT)
        try:
            code = subprocess.run([*command, f"stack and ({markers})"], check=False).returncode
        finally:
            code_beside = beside.wait()  # Ctrl-C reaches it too
            said.seek(0)
            print(said.read())
    return code or code_beside


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
