"""A flow run's work on the Ray cluster: a job of its own there, whose workers log with the flow run's id."""

from functools import cache

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from pipeline.cluster import tasks


def begin(address: str) -> None:
    """Connect to the cluster, unless a flow above has, and let the run's log say which job of Ray it is."""
    tasks.connect(address, flow_run_id=flow_run_id())
    get_run_logger().info("this run is job %s of Ray", tasks.job_id())


@cache  # this process is one job of Ray, which has the id of the run that began it
def flow_run_id() -> str:
    """The id under which workers log: that of the uppermost flow run, of which this one may be a stage."""
    try:
        return str(flow_run.root_flow_run_id or flow_run.id or "")
    except Exception:  # noqa: BLE001 (Prefect's server is asked, and may be away; a log is no reason to fail)
        return str(flow_run.id or "")
