"""Let one flow run at a time work on a dataset or training run, and close the flow runs of dead holders."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.prefect_ops import flow_runs
from flows.prefect_ops.termination import terminable
from pipeline.store import lease, objects
from pipeline.store.lease import Fence, LeaseHeldError

_ASK_SECONDS = 15.0


@contextmanager
def exclusively(folder: str, say: Callable[[str], None]) -> Iterator[Fence]:
    """Hold the lease of a folder within the block, inside a flow; yield its fence.

    The flow run of a previous holder that died is closed as Crashed or Cancelled. Raises LeaseHeldError when another
    holder is alive.
    """
    with lease.hold(folder, {"flow_run": str(flow_run.id or "")}, say=say) as held:
        dead_run = (held.taken_over_from or {}).get("flow_run")
        if dead_run:
            try:
                closed = flow_runs.close(dead_run, flow_run.id)
            except (PrefectException, httpx.HTTPError) as error:  # closing it is not needed for the work itself
                get_run_logger().warning("flow run %s died, and cannot be closed: %s", dead_run, error)
            else:
                if closed:
                    get_run_logger().warning("flow run %s died while working on %s; closed it", dead_run, folder)
        with terminable():
            yield held.fence


def await_free(folder: str, say: Callable[[str], None], seconds: float) -> None:
    """Wait until no live process holds the lease of a folder. Raises LeaseHeldError when one does after `seconds`."""
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            with exclusively(objects.absolute(folder), (lambda line: None) if told else say):
                return
        except LeaseHeldError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"{error}; waiting for its end")
                told = True
            time.sleep(_ASK_SECONDS)
