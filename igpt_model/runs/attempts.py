"""How often a run failed in a row, whether it was given up, and whether its registration is awaited.

{run}/attempts.json       written before each attempt, so that an attempt whose process is killed counts too; removed
    when the training ends. A new checkpoint since then means that the run makes progress, and sets the count to 0
{run}/abandoned.json      why nothing takes the run up by itself any more
{run}/registration.json   the version that a refresh registered; empty until then
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from igpt_model.config import ExecutionSettings
from igpt_model.runs import checkpoint
from pipeline.errors import IgptError, first_line
from pipeline.store import objects
from pipeline.store.lease import LeaseLostError

_ATTEMPTS, ABANDONED, _REGISTRATION = "attempts.json", "abandoned.json", "registration.json"
_KILLED = "its process died"
_LONGEST_PAUSE = 3600.0  # seconds


class AbandonedError(IgptError):
    """The run was given up; only a person takes it up again."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """The failures of a run in a row, without a new checkpoint in between."""

    count: int = 0
    step: int = 0
    """The newest checkpoint when the last attempt began."""
    reason: str = ""
    """Why the last attempt failed."""
    since: float = 0.0
    """When it failed, or began if its process died, in seconds since 1970."""

    @property
    def text(self) -> str:
        """In words that follow "it"."""
        times = "once" if self.count == 1 else f"{self.count} times in a row"
        return f"failed {times} without a new checkpoint, at last after step {self.step:,} ({self.reason})"

    def pause(self, execution: ExecutionSettings, now: float) -> float:
        """Seconds to wait before the next attempt. It grows with each failure and has passed in part by `now`."""
        if not self.count:
            return 0.0
        whole = min(execution.pause_seconds * 2.0 ** min(self.count - 1, 30), _LONGEST_PAUSE)
        return min(whole, max(0.0, self.since + whole - now))


def failures(run: str) -> Failures:
    """The failures of a run since its newest checkpoint."""
    stored, step = _read(run, _ATTEMPTS), max(checkpoint.marked_steps(run), default=0)
    before = Failures() if stored is None else Failures(**stored)
    return before if before.count and step <= before.step else Failures(step=step)


@contextmanager
def counted(run: str, *, uncounted: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Count the block as a failure of the run if it raises or the process dies in it.

    Not counted are cancellations, the loss of the run's lease, and `uncounted` errors, with which no training begins.
    """
    before = failures(run)
    attempt = replace(before, count=before.count + 1, reason=_KILLED, since=time.time())
    _write(run, _ATTEMPTS, asdict(attempt))
    try:
        yield
    except LeaseLostError:  # the folder is another process's now
        raise
    except uncounted:
        _restore(run, before)
        raise
    except Exception as error:
        with suppress(IgptError, OSError):  # the store may be what failed; then the attempt counts as killed
            told = replace(attempt, reason=first_line(error), since=time.time())
            _write(run, _ATTEMPTS, asdict(told), patient=False)
        raise
    except BaseException:  # cancelled
        _restore(run, before)
        raise
    objects.delete(objects.join(run, _ATTEMPTS))


def _restore(run: str, before: Failures) -> None:
    with suppress(IgptError, OSError):
        if before.count:
            _write(run, _ATTEMPTS, asdict(before), patient=False)
        else:
            objects.delete(objects.join(run, _ATTEMPTS), patient=False)


def abandon(run: str, reason: str) -> None:
    """Record that a run is given up, and why."""
    _write(run, ABANDONED, {"reason": reason, "time": datetime.now(UTC).isoformat(timespec="seconds")})


def why_abandoned(run: str) -> str | None:
    """Why a run was given up; None: it was not."""
    stored = _read(run, ABANDONED)
    return None if stored is None else str(stored["reason"])


def refuse_abandoned(run: str) -> None:
    """Raise AbandonedError when a run was given up."""
    if (reason := why_abandoned(run)) is not None:
        raise AbandonedError(f"{run} was given up: {reason}; `igpt runs resume {run}` takes it up again")


def take_up_again(run: str) -> None:
    """Forget that a run was given up, and its failures."""
    for name in (ABANDONED, _ATTEMPTS):
        objects.delete(objects.join(run, name))


def await_registration(run: str) -> None:
    """Record that the model of a run is to be registered, unless that is known."""
    if _read(run, _REGISTRATION) is None:
        _write(run, _REGISTRATION, {"model": ""})


def note_registration(run: str, model: str) -> None:
    """Record the version that a run's model was registered as, if that was awaited."""
    if awaits_registration(run):
        _write(run, _REGISTRATION, {"model": model})


def awaits_registration(run: str) -> bool:
    """Whether a refresh began the run and has not registered its model."""
    return registration(run) == ""


def registration(run: str) -> str | None:
    """The version that a refresh registered a run's model as; empty: not yet; None: no refresh began the run."""
    stored = _read(run, _REGISTRATION)
    return None if stored is None else str(stored["model"])


def _read(run: str, name: str) -> dict[str, Any] | None:
    url = objects.join(run, name)
    try:
        return dict(json.loads(objects.read_bytes(url)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise IgptError(f"{url}: damaged ({error}); remove it, which forgets what it counted") from None


def _write(run: str, name: str, fields: dict[str, Any], *, patient: bool = True) -> None:
    objects.write_bytes(objects.join(run, name), json.dumps(fields, sort_keys=True).encode(), patient=patient)
