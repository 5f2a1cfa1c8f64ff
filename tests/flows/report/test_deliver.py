"""A report is where people look for it, and one that cannot be made or stored loses nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.report import deliver
from flows.report.content import Report
from flows.terminal.console import Reporter
from igpt_model.tracking.runs import RunLogger

REPORT = Report(title="digits", subtitle="", headline=(), dataset="d", sections=())


class Run:
    """Stands for the MLflow run."""

    url = "http://m/#/experiments/1/runs/ab"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def file(self, data: bytes, name: str) -> None:
        self.files[name] = data


class Away(Run):
    """A run whose server does not answer."""

    def file(self, data: bytes, name: str) -> None:
        raise ConnectionError("no\nanswer")


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The links on Prefect's page."""
    made: list[tuple] = []
    monkeypatch.setattr(deliver.artifacts, "link", lambda *link: made.append(link))
    return made


def run_deliver(make: Callable[[], Report], run: Run | None, folder: Path | None) -> Path | None:
    logger: RunLogger | None = run  # type: ignore[assignment]
    return deliver.deliver(make, logger=logger, name="report.html", folder=folder, reporter=Reporter("report"))


def test_it_is_in_the_folder_in_mlflow_and_linked(links: list[tuple], tmp_path: Path) -> None:
    run = Run()
    path = run_deliver(lambda: REPORT, run, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert run.files == {"report.html": path.read_bytes()} and b"<title>digits</title>" in path.read_bytes()
    assert links == [("report", f"{run.url}/artifacts/report.html", "report.html", "digits")]


def test_without_a_folder_or_a_run_it_is_only_where_it_can_be(links: list[tuple], tmp_path: Path) -> None:
    run = Run()
    assert run_deliver(lambda: REPORT, run, None) is None
    assert list(run.files) == ["report.html"] and len(links) == 1
    assert run_deliver(lambda: REPORT, None, tmp_path) == tmp_path / "report.html"
    assert len(links) == 1


def test_one_that_cannot_be_made_is_told_in_a_line(
    links: list[tuple], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make() -> Report:
        raise ValueError("the raw images\nare gone")

    assert run_deliver(make, Run(), tmp_path) is None
    assert capsys.readouterr().out == "  report: no report: the raw images\n"
    assert (list(tmp_path.iterdir()), links) == ([], [])


def test_one_that_mlflow_does_not_take_is_in_the_folder(
    links: list[tuple], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_deliver(lambda: REPORT, Away(), tmp_path) == tmp_path / "report.html"
    assert capsys.readouterr().out == "  report: the report is not in MLflow: no\n"
    assert links == []


def test_one_that_cannot_be_written_is_in_mlflow(
    links: list[tuple], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    run = Run()
    assert run_deliver(lambda: REPORT, run, tmp_path / "file") is None
    assert "the report cannot be written" in capsys.readouterr().out
    assert list(run.files) == ["report.html"] and len(links) == 1
