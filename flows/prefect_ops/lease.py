"""One run at a time on a dataset or a training run, and the truth about those that died at it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.prefect_ops import flow_runs
from flows.prefect_ops.termination import terminable
from pipeline.store import lease
from pipeline.store.lease import Fence


@contextmanager
def exclusively(folder: str, say: Callable[[str], None]) -> Iterator[Fence]:
    """Have the lease of a folder for the length of the block, inside a flow.

    Where its last holder died, its flow run is closed with its true state. Raises LeaseHeldError when another is alive.
    """
    with lease.hold(folder, {"flow_run": str(flow_run.id or "")}, say=say) as held:
        before = (held.taken_over_from or {}).get("flow_run")
        if before:
            try:
                closed = flow_runs.close(before, flow_run.id)
            except (PrefectException, httpx.HTTPError) as error:  # the books can wait, the work goes on
                get_run_logger().warning("flow run %s died, and cannot be closed: %s", before, error)
            else:
                if closed:
                    get_run_logger().warning("flow run %s died at work on %s; closed it", before, folder)
        with terminable():
            yield held.fence
