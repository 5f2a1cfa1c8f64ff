"""JSON logs: each line is one object, whatever the message, with the ids of its run."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.cluster.logs import JsonFormatter, WorkerLine, parse
from pipeline.printable import UNPRINTABLE

ROOT = Path(__file__).parents[3]
VARIABLES: dict[str, str] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["x-logs"]


def record(message: str, *values: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("prefect.flow_runs", logging.INFO, __file__, 1, message, values, None)
    made.__dict__.update(extra)
    return made


def test_a_record_is_one_line_with_the_ids_of_its_run() -> None:
    line = JsonFormatter().format(record('%d images\nin "%s"', 7, "ü", flow_run_id="1234", flow_run_name=None))
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["message"] == '7 images\nin "ü"'
    assert fields["flow_run_id"] == "1234" and "flow_run_name" not in fields
    assert (fields["level"], fields["logger"]) == ("INFO", "prefect.flow_runs")


def test_a_line_of_a_worker_is_read_back_and_any_other_is_taken_as_it_is() -> None:
    line = JsonFormatter().format(record("%d images\nin", 7))
    assert parse("node", line) == WorkerLine(
        node="node", level=logging.INFO, text="7 images\nin", logger="prefect.flow_runs"
    )
    for other in ("Fatal Python error: Segmentation fault", '{"level": "LOUD", "message": ""}', "[1]", "null"):
        assert parse("node", f"{other}\n") == WorkerLine(node="node", level=logging.INFO, text=other)


def test_a_traceback_is_a_field() -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    line = JsonFormatter().format(failed)
    assert "\n" not in line and "ZeroDivisionError" in json.loads(line)["traceback"]


def test_prefect_uses_it_with_the_variables_of_production(tmp_path: Path) -> None:
    code = (
        "from prefect.logging.configuration import setup_logging; setup_logging(); "
        "from prefect.logging import get_logger; get_logger('tried').warning('x' * 300)"
    )
    environment = {**os.environ, **VARIABLES, "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "x" * 300


def test_what_a_terminal_obeys_is_escaped_and_comes_back_whole() -> None:
    message = "\x1b[31m \x9b \u202e \u2028 caf\udce9 \U000e0041 größer 猫\n"
    line = JsonFormatter().format(record("%s", message))
    assert UNPRINTABLE.search(line) is None and "größer 猫" in line
    assert json.loads(line)["message"] == message
    line.encode()
