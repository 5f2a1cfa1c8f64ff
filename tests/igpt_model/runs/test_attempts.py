"""Failures of a run in a row: what counts, how the pause grows, and what a driver that is killed leaves."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from igpt_model.config import ExecutionSettings
from igpt_model.runs import attempts, checkpoint
from igpt_model.runs.attempts import AbandonedError, Failures
from igpt_model.runs.checkpoint import TrainingState
from igpt_model.runs.tensor_files import Index
from pipeline.errors import IgptError
from pipeline.store.lease import LeaseLostError


def add_checkpoint(run: str, step: int, snapshot_digest: str = "of some") -> None:
    """A complete checkpoint without weights."""
    state = TrainingState(
        step=step,
        cursor=step,
        restarts=0,
        seconds=1.0,
        mlflow_run=None,
        snapshot=1,
        snapshot_digest=snapshot_digest,
        palette_sha256="p",
    )
    checkpoint.complete(checkpoint.folder_of(run, step), state, Index(files={}, tensors={}), {})


class DuringError(Exception):
    pass


def fail(run: str, error: BaseException, **options: tuple[type[Exception], ...]) -> None:
    with suppress(type(error)), attempts.counted(run, **options):
        raise error


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def test_failures_in_a_row_are_counted_with_the_last_reason(run: str) -> None:
    assert attempts.failures(run).count == 0
    fail(run, DuringError("first\nsecond line"))
    fail(run, IgptError("the loss is nan"))
    told = attempts.failures(run)
    assert told.count == 2
    assert told.text == "failed 2 times in a row without a new checkpoint, at last after step 0 (the loss is nan)"
    with attempts.counted(run):
        pass
    assert attempts.failures(run) == Failures() and not list(Path(run).iterdir())


def test_a_new_checkpoint_sets_the_count_to_zero(run: str) -> None:
    add_checkpoint(run, 10)
    fail(run, DuringError("one"))
    fail(run, DuringError("two"))
    assert (attempts.failures(run).count, attempts.failures(run).step) == (2, 10)
    with pytest.raises(DuringError), attempts.counted(run):
        add_checkpoint(run, 20)
        raise DuringError("it came further")
    assert attempts.failures(run).count == 0
    fail(run, DuringError("at the same step"))
    assert attempts.failures(run).count == 1
    checkpoint.remove(run, 20)  # a checkpoint fewer is no progress
    assert attempts.failures(run).count == 1


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), OSError("cluster too small")], ids=lambda error: type(error).__name__
)
def test_a_cancellation_and_a_training_that_did_not_begin_do_not_count(error: BaseException, run: str) -> None:
    fail(run, error, uncounted=(OSError,))
    assert not list(Path(run).iterdir())
    fail(run, DuringError("first"))
    before = attempts.failures(run)
    fail(run, error, uncounted=(OSError,))
    assert attempts.failures(run) == before


def test_who_lost_the_lease_writes_nothing_more(run: str) -> None:
    """The folder is another process's by then."""
    with pytest.raises(LeaseLostError), attempts.counted(run):
        attempts.take_up_again(run)
        raise LeaseLostError("taken over")
    assert not list(Path(run).iterdir())


def test_a_killed_process_counts(run: str) -> None:
    code = """
import sys, time
from igpt_model.runs import attempts
with attempts.counted(sys.argv[1]):
    print("begun", flush=True)
    time.sleep(600)
"""
    for count in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", code, run], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert (attempts.failures(run).count, attempts.failures(run).reason) == (count, "its process died")


def test_the_pause_doubles_up_to_an_hour_and_passes_while_nobody_waits() -> None:
    execution = ExecutionSettings(pause_seconds=60)
    pauses = [Failures(count=count, since=1000.0).pause(execution, 1000.0) for count in range(12)]
    assert pauses[:5] == [0, 60, 120, 240, 480]
    assert pauses[-2:] == [3600, 3600] and Failures(count=10_000, since=0.0).pause(execution, 0.0) == 3600
    failed = Failures(count=2, since=1000.0)
    assert [failed.pause(execution, now) for now in (1050.0, 1119.0, 1120.0, 90_000.0)] == [70, 1, 0, 0]
    assert failed.pause(execution, 0.0) == 120, "a clock that is behind costs one pause at most"
    assert Failures(count=3, since=0.0).pause(ExecutionSettings(pause_seconds=0), 0.0) == 0


def test_a_run_that_was_given_up_is_refused_until_a_person_takes_it_up_again(run: str) -> None:
    attempts.refuse_abandoned(run)
    fail(run, DuringError("out of memory"))
    attempts.abandon(run, "it failed")
    assert attempts.why_abandoned(run) == "it failed"
    with pytest.raises(AbandonedError, match=r"was given up: it failed; `igpt runs resume .*` takes it up again"):
        attempts.refuse_abandoned(run)
    attempts.take_up_again(run)
    attempts.refuse_abandoned(run)
    assert attempts.failures(run).count == 0


def test_a_damaged_count_is_told_in_a_line(run: str) -> None:
    Path(run).mkdir()
    for text in ("{", "1"):
        (Path(run) / "attempts.json").write_text(text)
        with pytest.raises(IgptError, match=r"attempts\.json: damaged \(.*\); remove it"):
            attempts.failures(run)


def test_a_registration_is_awaited_until_it_is_noted(run: str) -> None:
    attempts.note_registration(run, "models:/m/1")
    assert not attempts.awaits_registration(run) and not Path(run).exists(), "a run of before is not touched"
    attempts.await_registration(run)
    assert attempts.awaits_registration(run)
    attempts.note_registration(run, "models:/m/1")
    attempts.await_registration(run)
    assert not attempts.awaits_registration(run)
