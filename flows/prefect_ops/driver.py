"""The process of a deployed flow run. It outlives its worker, and an absence of the Prefect server.

A thread compares what the server says of the run with what is true: it ends the process when the run is cancelled, and
opens the run again when the server closed it because its heartbeats did not arrive.
"""

import itertools
import os
import runpy
import signal
import threading
from uuid import UUID

import httpx
from prefect._internal import control_listener
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.logging import get_logger

from flows.prefect_ops import flow_runs, outage
from flows.services import settings

_POLL_SECONDS = 5.0
# Each subflow run has heartbeats of its own, so it may be closed alone. Prefect sends them every 30 s.
_POLLS_PER_LOOK_AT_SUBFLOWS = 6
# A cancelled training finishes its checkpoint first.
_CANCEL_SECONDS = 60.0


def main() -> None:
    """Execute the flow run that Prefect's variables name, as `python -m prefect.engine` does."""
    run_id = settings.prepare_driver()
    outage.install()
    threading.Thread(target=_watch, args=(UUID(run_id),), daemon=True, name="flow-run").start()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _watch(run_id: UUID) -> None:
    pause, polls = threading.Event(), itertools.count(1)
    while not pause.wait(_POLL_SECONDS):
        try:
            with outage.turn:  # so that the run does not end between what is read here and what is set here
                state = flow_runs.state(run_id)
                if flow_runs.fell_silent(state) or next(polls) % _POLLS_PER_LOOK_AT_SUBFLOWS == 0:
                    flow_runs.reopen(run_id)
        except ObjectNotFound:  # somebody deleted the run
            return
        except (PrefectException, httpx.HTTPError) as error:
            get_logger("driver").warning("the state of this flow run cannot be read: %s", error)
            continue
        if state.is_cancelling() and _can_be_cancelled():
            _cancel()
            if not pause.wait(_CANCEL_SECONDS):
                flow_runs.cancel_all(run_id, f"cancelled; its process did not end within {_CANCEL_SECONDS:.0f} s")
                os.kill(os.getpid(), signal.SIGKILL)


def _can_be_cancelled() -> bool:
    """Whether Prefect's engine runs the flow already, and turns SIGTERM into an exception."""
    return signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None)


def _cancel() -> None:
    """End the flow as Prefect does: without this intent its engine takes SIGTERM for a crash."""
    control_listener._set_intent("cancel")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
