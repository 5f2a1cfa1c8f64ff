"""How the runs of deployments fare: two requests to the Prefect server, whatever their number."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

_OPEN = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class RunOfDeployment:
    """A flow run of a deployment."""

    deployment: str
    """The deployment's name, without the flow's."""
    state: str
    """SCHEDULED, RUNNING, COMPLETED, ..."""
    due: datetime | None
    started: datetime | None
    ended: datetime | None


def recent(names: tuple[str, ...]) -> list[RunOfDeployment]:
    """The earliest 200 unfinished runs, and the 200 that ended last, of the deployments with these names."""
    with get_client(sync_client=True) as client:
        deployments = {entry.id: entry.name for entry in client.read_deployments() if entry.name in names}
        if not deployments:
            return []
        runs = _read(client, list(deployments), _OPEN, FlowRunSort.EXPECTED_START_TIME_ASC)
        runs += _read(client, list(deployments), [StateType[state] for state in ENDED], FlowRunSort.END_TIME_DESC)
    return [
        RunOfDeployment(
            deployment=deployments[run.deployment_id],
            state=run.state.type.value,
            due=run.expected_start_time,
            started=run.start_time,
            ended=run.end_time,
        )
        for run in runs
        if run.state is not None and run.deployment_id in deployments
    ]


def _read(client: SyncPrefectClient, ids: list[UUID], states: list[StateType], sort: FlowRunSort) -> list[FlowRun]:
    matching = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=ids),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
    )
    return client.read_flow_runs(flow_run_filter=matching, sort=sort, limit=_PAGE)
