"""Flow runs as the Prefect server knows them: which wait, which are dead, and closing those. Decisions are pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Cancelled, Crashed

# A run that begins so late makes way for a newer one that waits. Not at once: where runs come faster than they begin,
# each would make way for the next, and none would work.
_LATE = timedelta(minutes=1)
# A run that begins looks at the lease within this time, and then has it or ends.
_BEGIN = timedelta(minutes=2)
# A process is started within this time after a worker has taken a run, or its worker died.
_START = timedelta(minutes=10)
_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class KnownRun:
    """A flow run of a deployment."""

    id: UUID
    name: str
    state: str
    """SCHEDULED, PENDING, RUNNING, ..."""
    due: datetime
    """When it was to start."""
    since: datetime
    """When it came into its state."""
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to become of the runs of a deployment when one of them begins."""

    superseded: list[KnownRun]
    """Wait, and a newer one with the same parameters does the same work."""
    works: KnownRun
    """The one that begins, or a newer one that waits."""


def order(mine: KnownRun, others: Sequence[KnownRun], now: datetime) -> Order:
    """Of all runs with the same parameters that are due, only the newest is to work."""
    due = [each for each in _alike(mine, others) if each.state == "SCHEDULED" and each.due <= now]
    newest = max([mine, *due], key=lambda each: (each.due, each.id.int))
    late = now - mine.due > _LATE
    return Order(superseded=[each for each in due if each is not newest], works=newest if late else mine)


def dead(mine: KnownRun, others: Sequence[KnownRun], now: datetime) -> list[KnownRun]:
    """The runs that cannot be alive while `mine` has the lease that each run with these parameters needs to work."""
    allowed = {"RUNNING": _BEGIN, "CANCELLING": _BEGIN, "PENDING": _START}
    return [each for each in _alike(mine, others) if each.state in allowed and now - each.since > allowed[each.state]]


def _alike(mine: KnownRun, others: Sequence[KnownRun]) -> list[KnownRun]:
    return [each for each in others if each.id != mine.id and each.parameters == mine.parameters]


def step_aside(run_id: str) -> str | None:
    """Cancel the waiting runs that a newer one makes needless; why this run is one of them, or None."""
    with get_client(sync_client=True) as client:
        mine, others = _of_same_deployment(client, UUID(run_id))
        what = order(mine, others, datetime.now(UTC))
        message = f"the run {what.works.name}, due {what.works.due:%Y-%m-%d %H:%M:%S} UTC, does the same work"
        for each in what.superseded:
            client.set_flow_run_state(each.id, Cancelled(message=message))
    return None if what.works is mine else message


def cancel(run_id: str, message: str) -> NoReturn:
    """End the run of this process as Cancelled; unlike a returned state, without a traceback in the worker's log."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run_id), Cancelled(message=message), force=True)
    raise Abort(message)


def close_siblings(run_id: str) -> list[str]:
    """Close the dead runs of a run's deployment, while it has their lease; returns their names."""
    with get_client(sync_client=True) as client:
        mine, others = _of_same_deployment(client, UUID(run_id))
        gone = dead(mine, others, datetime.now(UTC))
        for each in gone:
            _close_tree(client, client.read_flow_run(each.id), mine.name)
    return [each.name for each in gone]


def close(run_id: str, successor_id: str | None) -> bool:
    """Close a run whose process is known to be dead, with those it was part of; tells whether there was any to close.

    A run that was being cancelled becomes Cancelled, any other Crashed.
    """
    with get_client(sync_client=True) as client:
        try:
            root = _root(client, UUID(run_id))
            successor = _root(client, UUID(successor_id)) if successor_id else None
        except ObjectNotFound:
            return False
        if successor is not None and successor.id == root.id:  # the same run, started again
            return False
        return _close_tree(client, root, successor.name if successor else "another process")


def _of_same_deployment(client: SyncPrefectClient, run_id: UUID) -> tuple[KnownRun, list[KnownRun]]:
    mine = client.read_flow_run(run_id)
    if mine.deployment_id is None:
        return _known(mine), []
    states = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[mine.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
    )
    return _known(mine), [_known(run) for run in _all(client, wanted)]


def _all(client: SyncPrefectClient, wanted: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found


def _known(run: FlowRun) -> KnownRun:
    assert run.state is not None
    since = run.state.timestamp
    return KnownRun(
        id=run.id,
        name=run.name,
        state=run.state.type.value,
        due=run.expected_start_time or since,
        since=since,
        parameters=run.parameters,
    )


def _root(client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    """The run whose process a run is in: a flow that a flow calls runs in the same one, unless it is deployed."""
    run = client.read_flow_run(run_id)
    while run.deployment_id is None and run.parent_task_run_id is not None:
        above = client.read_task_run(run.parent_task_run_id).flow_run_id
        if above is None:
            break
        run = client.read_flow_run(above)
    return run


def _tree(client: SyncPrefectClient, root: FlowRun) -> Iterator[FlowRun]:
    """A run and those below it in the same process."""
    yield root
    below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[root.id]))
    for run in _all(client, below):
        if run.deployment_id is None:
            yield from _tree(client, run)


def _close_tree(client: SyncPrefectClient, root: FlowRun, successor: str) -> bool:
    closed = False
    message = f"its process died; {successor} goes on with its work"
    for run in _tree(client, root):
        if run.state is None or run.state.is_final():
            continue
        cancelled = run.state.type == StateType.CANCELLING
        client.set_flow_run_state(run.id, (Cancelled if cancelled else Crashed)(message=message), force=True)
        closed = True
    return closed
