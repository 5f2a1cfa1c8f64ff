"""A flow run holds a folder, and closes the run of a holder that died. integration/ kills real ones."""

import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from flows.prefect_ops import lease as flow_lease
from flows.prefect_ops.lease import await_free, exclusively
from pipeline.store import lease
from pipeline.store.lease import LeaseHeldError, LeaseLostError
from tests.pipeline.store.test_lease import DEAD, die_with


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings in the log of the flow run."""
    warnings: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(flow_lease, "get_run_logger", lambda: logger)
    monkeypatch.setattr(flow_lease, "flow_run", SimpleNamespace(id="mine"))
    monkeypatch.setattr(flow_lease.lease, "hold", partial(lease.hold, dead_seconds=DEAD))
    return warnings


def test_the_run_that_holds_a_folder_is_named_to_the_next_one(tmp_path: Path, warnings: list[str]) -> None:
    with exclusively(str(tmp_path), print) as fence:
        fence.check()
        with (
            pytest.raises(LeaseHeldError, match=r"\(flow run mine\)"),
            lease.hold(str(tmp_path), dead_seconds=5 * DEAD),
        ):
            pass
    with lease.hold(str(tmp_path)), pytest.raises(LeaseLostError):
        fence.check()
    assert warnings == []


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (True, ["flow run dead died while working on {folder}; closed it"]),
        (False, []),  # it was closed already
        (httpx.ConnectError("away"), ["flow run dead died, and cannot be closed: away"]),
    ],
)
def test_the_run_of_a_dead_holder_is_closed(
    outcome: object, expected: list[str], tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    die_with(str(tmp_path), flow_run="dead")
    closed: list[tuple] = []

    def close(*runs: str) -> object:
        closed.append(runs)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(flow_lease.flow_runs, "close", close)
    with exclusively(str(tmp_path), print) as fence:
        fence.check()  # the work goes on whatever became of the other run
    assert closed == [("dead", "mine")]
    assert warnings == [line.format(folder=tmp_path) for line in expected]


@pytest.mark.usefixtures("warnings")
def test_a_refresh_waits_for_the_build_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_lease, "_ASK_SECONDS", 0.2)
    building, built = threading.Event(), threading.Event()
    said: list[str] = []

    def build() -> None:
        with lease.hold(str(tmp_path)):
            building.set()
            built.wait(60)

    thread = threading.Thread(target=build)
    thread.start()
    assert building.wait(60)
    with pytest.raises(LeaseHeldError):
        await_free(str(tmp_path), said.append, 0.0)
    threading.Timer(1.0, built.set).start()
    await_free(str(tmp_path), said.append, 60.0)
    assert built.is_set() and sum(line.endswith("waiting for its end") for line in said) == 1
    thread.join()
    await_free(str(tmp_path), said.append, 0.0)  # whose lease has ended, too
