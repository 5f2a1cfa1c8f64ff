"""Flow runs on the Prefect server: cancel superseded ones and close dead ones. The decisions are pure functions."""

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
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Cancelled, Crashed, Running

# A run that starts later than this after its due time gives way to a newer waiting run. Not earlier: if runs are
# scheduled faster than they start, each would give way to the next, and none would work.
_LATE = timedelta(minutes=1)
# A live run has acquired its lease, or ended, within this time after its start.
_ACQUIRE_TIMEOUT = timedelta(minutes=2)
# A live worker has started the process of a run within this time after taking the run.
_START_TIMEOUT = timedelta(minutes=10)
_PAGE = 200
SILENT = "its process sent no heartbeat"
"""How the message begins with which the server closes a run that fell silent (deployments.py)."""
ALIVE = "its process is alive; the server had missed its heartbeats"
"""The message with which a run that fell silent is opened again."""


@dataclass(frozen=True, kw_only=True)
class DeployedRun:
    """A flow run of a deployment."""

    id: UUID
    name: str
    state: str
    """SCHEDULED, PENDING, RUNNING, ..."""
    due: datetime
    """When it was scheduled to start."""
    since: datetime
    """When it entered its state."""
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which of a deployment's runs should work, and which to cancel, when one of them starts."""

    superseded: list[DeployedRun]
    """Waiting runs with the same parameters as a newer one."""
    active: DeployedRun
    """The run that should work: the one that starts, or a newer waiting one."""


def decide(current: DeployedRun, others: Sequence[DeployedRun], now: datetime) -> Decision:
    """Of all due runs with the same parameters, only the newest should work."""
    due = [run for run in _same_parameters(current, others) if run.state == "SCHEDULED" and run.due <= now]
    newest = max([current, *due], key=lambda run: (run.due, run.id.int))
    late = now - current.due > _LATE
    return Decision(superseded=[run for run in due if run is not newest], active=newest if late else current)


def dead(current: DeployedRun, others: Sequence[DeployedRun], now: datetime) -> list[DeployedRun]:
    """The runs that cannot be alive, given that `current` holds the lease all runs with these parameters need."""
    limits = {"RUNNING": _ACQUIRE_TIMEOUT, "CANCELLING": _ACQUIRE_TIMEOUT, "PENDING": _START_TIMEOUT}
    same = _same_parameters(current, others)
    return [run for run in same if run.state in limits and now - run.since > limits[run.state]]


def _same_parameters(current: DeployedRun, others: Sequence[DeployedRun]) -> list[DeployedRun]:
    return [run for run in others if run.id != current.id and run.parameters == current.parameters]


def cancel_superseded(run_id: str) -> str | None:
    """Cancel the waiting runs that a newer one supersedes; return why this run is superseded too, or None."""
    with get_client(sync_client=True) as client:
        current, others = _of_same_deployment(client, UUID(run_id))
        decision = decide(current, others, datetime.now(UTC))
        active = decision.active
        message = f"the run {active.name}, due {active.due:%Y-%m-%d %H:%M:%S} UTC, does the same work"
        for run in decision.superseded:
            client.set_flow_run_state(run.id, Cancelled(message=message))
    return None if active is current else message


def cancel(run_id: str, message: str) -> NoReturn:
    """End this process's run as Cancelled. A returned state would leave a traceback in the worker's log."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run_id), Cancelled(message=message), force=True)
    raise Abort(message)


def close_dead(run_id: str) -> list[str]:
    """Close the dead runs of a run's deployment and return their names. The run must hold the lease they share."""
    with get_client(sync_client=True) as client:
        current, others = _of_same_deployment(client, UUID(run_id))
        closed = dead(current, others, datetime.now(UTC))
        for run in closed:
            _close_tree(client, client.read_flow_run(run.id), current.name)
    return [run.name for run in closed]


def close(run_id: str, successor_id: str | None) -> bool:
    """Close a run whose process is dead, and all other runs of that process; return whether any was open.

    A run that was being cancelled becomes Cancelled, any other Crashed.
    """
    with get_client(sync_client=True) as client:
        try:
            root = _root(client, UUID(run_id))
            successor = _root(client, UUID(successor_id)) if successor_id else None
        except ObjectNotFound:
            return False
        if successor is not None and successor.id == root.id:  # the same run, restarted
            return False
        return _close_tree(client, root, successor.name if successor else "another process")


def state(run_id: UUID) -> State[Any]:
    """The state of a run. Raises ObjectNotFound for a deleted one."""
    with get_client(sync_client=True) as client:
        current = client.read_flow_run(run_id).state
    assert current is not None
    return current


def fell_silent(run: State[Any]) -> bool:
    """Whether the server closed a run because its heartbeats did not arrive."""
    return run.is_crashed() and (run.message or "").startswith(SILENT)


def reopen(run_id: UUID) -> None:
    """Set a run and its subflow runs in the same process to Running, where the server closed them as silent."""
    with get_client(sync_client=True) as client:
        for run in _tree(client, client.read_flow_run(run_id)):
            if run.state is not None and fell_silent(run.state):
                client.set_flow_run_state(run.id, Running(message=ALIVE), force=True)


def cancel_all(run_id: UUID, message: str) -> None:
    """Close a run and all other open runs of its process as Cancelled."""
    with get_client(sync_client=True) as client:
        for run in _tree(client, client.read_flow_run(run_id)):
            if run.state is not None and not run.state.is_final():
                client.set_flow_run_state(run.id, Cancelled(message=message), force=True)


def _of_same_deployment(client: SyncPrefectClient, run_id: UUID) -> tuple[DeployedRun, list[DeployedRun]]:
    """A run, and all unfinished runs of its deployment."""
    current = client.read_flow_run(run_id)
    if current.deployment_id is None:
        return _deployed_run(current), []
    states = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    unfinished = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[current.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
    )
    return _deployed_run(current), [_deployed_run(run) for run in _read_all(client, unfinished)]


def _read_all(client: SyncPrefectClient, matching: FlowRunFilter) -> list[FlowRun]:
    runs: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=matching, limit=_PAGE, offset=len(runs))
        runs += page
        if len(page) < _PAGE:
            return runs


def _deployed_run(run: FlowRun) -> DeployedRun:
    assert run.state is not None
    since = run.state.timestamp
    return DeployedRun(
        id=run.id,
        name=run.name,
        state=run.state.type.value,
        due=run.expected_start_time or since,
        since=since,
        parameters=run.parameters,
    )


def _root(client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    """The uppermost run in the process of a run: subflows run in their parent's process, unless they are deployed."""
    run = client.read_flow_run(run_id)
    while run.deployment_id is None and run.parent_task_run_id is not None:
        parent_id = client.read_task_run(run.parent_task_run_id).flow_run_id
        if parent_id is None:
            break
        run = client.read_flow_run(parent_id)
    return run


def _tree(client: SyncPrefectClient, root: FlowRun) -> Iterator[FlowRun]:
    """A run and its subflow runs in the same process."""
    yield root
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[root.id]))
    for run in _read_all(client, children):
        if run.deployment_id is None:
            yield from _tree(client, run)


def _close_tree(client: SyncPrefectClient, root: FlowRun, successor: str) -> bool:
    closed = False
    message = f"its process died; {successor} continues its work"
    for run in _tree(client, root):
        if run.state is None or run.state.is_final():
            continue
        cancelled = run.state.type == StateType.CANCELLING
        client.set_flow_run_state(run.id, (Cancelled if cancelled else Crashed)(message=message), force=True)
        closed = True
    return closed
