"""The streams of the program, whatever the caller made of them: each case is a program of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PRINT = "from flows.terminal import streams; streams.prepare(); from flows.terminal.console import console; "


def run(shell: str, code: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command in which $RUN stands for the Python code."""
    environment = {"RUN": code, "PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **variables}
    command = ["bash", "-c", shell.replace("$RUN", '"$PYTHON" -c "$RUN"')]
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"LANG": "C.UTF-8"}, "größer 猫"),
        ({"LANG": "C"}, "größer 猫"),  # Python itself then takes UTF-8
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, r"gr\xf6\xdfer \u732b"),
        ({"PYTHONIOENCODING": "latin-1"}, b"gr\xf6\xdfer \\u732b".decode("latin-1")),
    ],
)
def test_what_the_locale_lacks_is_an_escape(variables: dict[str, str], shown: str) -> None:
    ended = run("$RUN", PRINT + r"console.print('gr\xf6\xdfer \u732b')", **variables)
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    assert (ended.returncode, ended.stderr, ended.stdout.decode(encoding)) == (0, b"", f"{shown}\n")


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = PRINT + f"file = open({str(tmp_path / 'data')!r}, 'w'); console.print('a line'); assert file.fileno() > 2"
    assert run("$RUN <&- >&- 2>&-", code).returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


@pytest.mark.parametrize("shell", ["$RUN | true", "$RUN > /dev/full", "$RUN >&-"])
def test_what_cannot_be_written_is_discarded_without_a_word(shell: str) -> None:
    code = "import sys, time; from flows.terminal import streams; streams.prepare(); time.sleep(0.5); "
    code += "sys.stdout and sys.stdout.write('x' * 100); streams.abandon()"
    ended = run(f"set -o pipefail; {shell}", code)
    assert (ended.returncode, ended.stderr) == (0, b"")
