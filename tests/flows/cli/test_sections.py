"""`igpt --help` groups the commands, names each in a whole sentence, and imports little; shells complete commands."""

import os
import subprocess
import sys

import typer.main

from flows.cli.main import app
from flows.cli.sections import SECTIONS

PROGRAM = [sys.executable, "-m", "flows.cli"]


def test_every_command_is_in_a_section_and_a_sentence_of_help_fits_a_line() -> None:
    commands = typer.main.get_group(app).commands  # type: ignore[attr-defined]
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(commands) == sorted(listed)
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, check=True, env=environment)
    lines = done.stdout.splitlines()
    assert [line.rstrip(":") for line in lines if line.rstrip(":") in SECTIONS] == list(SECTIONS)
    helps = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()[0] in listed}
    assert list(helps) == listed
    assert all(line.endswith(".") and not line.endswith("...") and len(line) <= 80 for line in helps.values())


def test_the_help_waits_for_no_large_library() -> None:
    code = "import sys, flows.cli.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    large = {
        "boto3",
        "botocore",
        "matplotlib",
        "mlflow",
        "pandas",
        "prefect",
        "pyarrow",
        "ray",
        "scipy",
        "sklearn",
        "torch",
    }
    assert not large & set(done.stdout.split())


def test_a_shell_completes_commands_and_options() -> None:
    for words, expected in (("igpt da", "dataset"), ("igpt sample --temp", "--temperature")):
        environment = {
            **os.environ,
            **{"_IGPT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)},
        }
        program = [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'igpt'; from flows.cli.__main__ import main; main()",
        ]
        done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
        assert done.stdout.split() == [expected], done.stderr
