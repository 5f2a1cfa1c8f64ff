"""Runs several pytest processes side by side: three that each share a stack between many tests, and the rest.

    python -m tests.side_by_side [--beside OPTIONS] [OPTION ...] -m MARKERS

They spend some of their time waiting. `--beside` fills it with one more pytest with OPTIONS in place of `-m MARKERS`.
The output of all but the first is printed when they have ended.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack

STACK_FOLDER = "tests/integration"
# What each part selects, the folder that it collects (which takes seconds), and its niceness: they all end at about the
# same time if those with the least to do leave the processors to the others.
_PARTS = (
    ("refreshed", STACK_FOLDER, 0),
    ("production", STACK_FOLDER, 3),
    ("stack and not (refreshed or production)", STACK_FOLDER, 2),
    ("not (stack or refreshed or production)", "tests", 0),
)
_BESIDE_NICE = 4
_NO_TESTS = 5  # pytest's exit status


def main(*arguments: str) -> int:
    """Run all parts; returns the exit status of the first that failed, or 0."""
    *options, _, markers = arguments
    beside: list[str] = []
    if options[:1] == ["--beside"]:
        beside, options = shlex.split(options[1]), options[2:]
    selections = [(["-m", f"{part} and ({markers})", folder], nice) for part, folder, nice in _PARTS]
    if beside:
        selections.append((beside, _BESIDE_NICE))
    codes = []
    with ExitStack() as files:
        runs, outputs = [], []
        for selection, nice in selections:
            output = files.enter_context(tempfile.TemporaryFile("w+")) if runs else None
            command = [sys.executable, "-m", "pytest", *options, *selection]
            runs.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
            outputs.append(output)
            os.setpriority(os.PRIO_PROCESS, runs[-1].pid, nice)  # before it starts processes, which inherit it
        for run, output in zip(runs, outputs, strict=True):
            codes.append(_wait(run))
            if output is not None:
                output.seek(0)
                print(output.read(), flush=True)
    # The markers may select no test of a part.
    failed = [code for code in codes if code and code != _NO_TESTS]
    return failed[0] if failed else min(codes)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the exit status, also after Ctrl-C, which makes the process end the services of its tests."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
