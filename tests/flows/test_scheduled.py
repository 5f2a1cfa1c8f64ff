"""When the last image arrived, progress as lines of a run's log, work while services are away; flows: integration/."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import scheduled
from flows.scheduled import _LoggedLines, _seconds_since_last, outlast
from flows.services.ports import HOST, free_port
from igpt_model.tracking import runs
from pipeline.errors import IgptError, NoAnswerError
from pipeline.store.lease import LeaseHeldError


def test_the_newest_object_decides(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old", 5000), ("class/newest", 100), ("class/older", 900)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (now - age, now - age))
    assert _seconds_since_last(str(tmp_path)) == pytest.approx(100, abs=20)


def test_each_line_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    lines = _LoggedLines(logging.getLogger("of the run"))
    with caplog.at_level(logging.INFO):
        lines.write("  dataset: list 100% images\n\n  done\n")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("of the run", "dataset: list 100% images"),
        ("of the run", "done"),
    ]


class Service:
    """A service by the answers that it gives when it is asked for, in turn; then it answers."""

    def __init__(self, *answers: Exception | None) -> None:
        self.left = list(answers)

    def check(self) -> None:
        """Raise the next answer."""
        answer = self.left.pop(0) if self.left else None
        if answer is not None:
            raise answer


def work_that_fails(*failures: Exception) -> tuple[list[int], Callable[[], None]]:
    """Work that fails with these errors, one a time, and the list of its tries."""
    tries: list[int] = []

    def work() -> None:
        tries.append(len(tries))
        if len(tries) <= len(failures):
            raise failures[len(tries) - 1]

    return tries, work


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled, "_ASK_SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
def test_work_that_fails_while_a_service_is_away_is_done_again_when_it_is_back() -> None:
    away = NoAnswerError("MLflow does not answer")
    service, said = Service(away, away, away, None, away), list[str]()
    # The last one says so itself, when the service answers again already.
    tries, work = work_that_fails(ValueError("lost"), IgptError("lost again"), NoAnswerError("no answer"))
    outlast(work, service.check, said.append)
    assert len(tries) == 4 and not service.left
    assert said.pop().startswith("failed (no answer) while a service is away (no answer)")
    assert said == [
        f"failed ({reason}) while a service is away (MLflow does not answer); done again when that answers"
        for reason in ("lost", "lost again")
    ]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (ValueError("of its own"), None),
        (IgptError("bad input"), IgptError("the bucket does not exist")),  # a mistake is no outage
        (LeaseHeldError("another run works"), NoAnswerError("away")),
    ],
)
def test_other_failures_are_raised_at_once(failure: Exception, answer: Exception | None) -> None:
    tries, work = work_that_fails(failure)
    with pytest.raises(type(failure), match=str(failure)):
        outlast(work, Service(answer).check, print)
    assert len(tries) == 1


@pytest.mark.usefixtures("quick")
def test_after_a_day_the_failure_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scheduled._AWAY_SECONDS == 24 * 3600
    monkeypatch.setattr(scheduled, "_AWAY_SECONDS", 0.2)
    away = Service(*[NoAnswerError("away")] * 10_000)
    tries, work = work_that_fails(*[ValueError("lost")] * 9)
    with pytest.raises(ValueError, match="lost"):
        outlast(work, away.check, print)
    assert len(tries) == 2


def test_a_server_that_does_not_listen_is_away_and_a_wrong_address_is_a_mistake() -> None:
    with pytest.raises(NoAnswerError):
        runs.check_reachable(f"http://{HOST}:{free_port()}")
    with pytest.raises(IgptError) as raised:
        runs.check_reachable("sqlite:///mlflow.db")
    assert not isinstance(raised.value, NoAnswerError)
