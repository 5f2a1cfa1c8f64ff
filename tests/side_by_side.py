"""Two runs of pytest side by side: the tests on hosts of their own, and the others. Both wait for much.

    python -m tests.side_by_side [OPTION ...] -m MARKERS

What the tests on hosts print comes when both have ended.
"""

import subprocess
import sys
import tempfile


def main(*arguments: str) -> int:
    """Run both; the exit status of the first that failed, or 0."""
    *options, markers = arguments
    command = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile("w+") as said:
        beside = subprocess.Popen([*command, f"rig and ({markers})"], stdout=said, stderr=subprocess.STDOUT)
        try:
            code = subprocess.run([*command, f"not rig and ({markers})"], check=False).returncode
        finally:
            code_beside = beside.wait()  # Ctrl-C reaches it too
            said.seek(0)
            print(said.read())
    return code or code_beside


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
