"""Old flow runs on the Prefect server, which removes them itself if its setting says so."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime
from pydantic import TypeAdapter

SETTING = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
_FLOW_RUNS = "flow_runs"


@dataclass(frozen=True, kw_only=True)
class OldFlowRuns:
    """What the server keeps."""

    removes: bool
    """Whether the server removes flow runs that ended long ago, with their logs."""
    days: float
    """How long it keeps them."""
    due: int
    """Number of flow runs that ended before."""


def read() -> OldFlowRuns:
    """Ask the server for its setting, and how many flow runs it removes by it, or would."""
    with get_client(sync_client=True) as client:
        answer = client.request("GET", "/admin/settings")
        answer.raise_for_status()
        vacuum = answer.json()["server"]["services"]["db_vacuum"]
        kept = TypeAdapter(timedelta).validate_python(vacuum["retention_period"])  # in ISO 8601, as P90D
        before = datetime.now(UTC) - kept
        old = FlowRunFilter(end_time=FlowRunFilterEndTime.model_validate({"before_": before}))
        due = client.count_flow_runs(flow_run_filter=old)
    enabled = vacuum["enabled"]
    removes = enabled is True or (isinstance(enabled, list) and _FLOW_RUNS in enabled)
    return OldFlowRuns(removes=removes, days=kept / timedelta(days=1), due=due)
