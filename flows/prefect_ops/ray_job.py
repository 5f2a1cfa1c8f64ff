"""The Ray job of a flow run. Its workers log with the flow run's id, and into the flow run's log."""

from functools import cache

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.prefect_ops.worker_lines import WorkerLines
from flows.services import cluster
from pipeline.cluster import tasks

_lines = WorkerLines()


def begin(address: str, step: str) -> None:
    """Connect to the cluster, unless a parent flow has, and log the id of the Ray job.

    Its tasks get the key of the step, one of store_rights.STEPS, until the next step begins.
    """
    _lines.logger = get_run_logger()
    cluster.connect(address, step, flow_run_id=flow_run_id(), heard=_lines)
    get_run_logger().info("this run is job %s of Ray", tasks.job_id())


@cache  # a process is one Ray job, whose workers keep the id that it was started with
def flow_run_id() -> str:
    """The id that workers log: that of the uppermost flow run, of which this one may be a subflow."""
    try:
        return str(flow_run.root_flow_run_id or flow_run.id or "")
    except Exception:  # noqa: BLE001 (this asks the Prefect server; a run must not fail for an id in its logs)
        return str(flow_run.id or "")
