"""Puts a report where people find it: in a folder, in the MLflow run, and as a link on Prefect's page.

A run is not lost by a report that cannot be made or stored: that is told in a line, as for a picture of a checkpoint.
"""

from collections.abc import Callable
from pathlib import Path

from flows.prefect_ops import artifacts
from flows.report import page
from flows.report.content import Report
from flows.terminal.console import Reporter
from igpt_model.tracking.runs import RunLogger
from pipeline.errors import first_line
from pipeline.store import objects

FILE = "report.html"


def deliver(
    make: Callable[[], Report], *, logger: RunLogger | None, name: str, folder: Path | None, reporter: Reporter
) -> Path | None:
    """Make a report, and store it as `name` with the MLflow run of `logger` and as report.html in a folder.

    Returns its path, None when there is none. Without a folder or a logger it is not stored there.
    """
    try:
        report = make()
        html = page.render(report)
    except Exception as error:  # noqa: BLE001 (a failed report must not lose the run)
        reporter.say(f"no report: {first_line(error)}")
        return None
    path = None if folder is None else _write(html, folder / FILE, reporter)
    if logger is not None:
        try:
            logger.file(html, name)
            artifacts.link("report", f"{logger.url}/artifacts/{name}", FILE, report.title)
        except Exception as error:  # noqa: BLE001 (of MLflow, the store or Prefect)
            reporter.say(f"the report is not in MLflow: {first_line(error)}")
    return path


def _write(html: bytes, path: Path, reporter: Reporter) -> Path | None:
    try:
        objects.write_bytes(str(path.absolute()), html)
    except Exception as error:  # noqa: BLE001 (a full disk, or a folder that may not be written)
        reporter.say(f"{path}: the report cannot be written: {first_line(error)}")
        return None
    return path
