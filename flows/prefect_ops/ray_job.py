"""The Ray job of a flow run. Its workers log with the flow run's id."""

from functools import cache

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from pipeline.cluster import tasks


def begin(address: str) -> None:
    """Connect to the cluster, unless a parent flow has, and log the id of the Ray job."""
    tasks.connect(address, flow_run_id=flow_run_id())
    get_run_logger().info("this run is job %s of Ray", tasks.job_id())


@cache  # a process is one Ray job, whose workers keep the id that it was started with
def flow_run_id() -> str:
    """The id that workers log: that of the uppermost flow run, of which this one may be a subflow."""
    try:
        return str(flow_run.root_flow_run_id or flow_run.id or "")
    except Exception:  # noqa: BLE001 (this asks the Prefect server; a run must not fail for an id in its logs)
        return str(flow_run.id or "")
