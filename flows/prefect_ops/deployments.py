"""Register deployments from a prefect.yaml, their work pools and automations with a Prefect server (`igpt deploy`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, get_type_hints
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import MissingFlowError, ObjectAlreadyExists, ObjectNotFound, ParameterTypeError
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.workers.process import ProcessWorker

from flows.prefect_ops.flow_runs import SILENT
from pipeline.errors import IgptError
from pipeline.typed_config import config_file, values
from pipeline.typed_config.config import Config

_ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")}
# Runs send a heartbeat every 30 s (PREFECT_FLOWS_HEARTBEAT_FREQUENCY). Long enough that a restarted server does not
# close live runs whose heartbeats it missed.
_HEARTBEAT_TIMEOUT = timedelta(minutes=5)
# `igpt worker` puts the right Python first on PATH.
_LAUNCHER = "python -m flows.prefect_ops.launcher"
# The server updates automations by name: a new name would leave the old automation running.
SILENT_AUTOMATION = "igpt: close runs that fell silent"
NOTIFY_AUTOMATION = "igpt: tell of runs that failed"
NOTIFIER = "igpt"
"""The name of the notification block that is used unless another one is given."""


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry:
    """When a deployment runs: `cron` or `interval`."""

    slug: str
    """Its name."""
    cron: str | None = None
    """A cron expression of five fields."""
    interval: float | None = None
    """Seconds from one run to the next."""
    anchor_date: datetime | None = None
    """Start of the first interval, such as 2026-01-05T04:00:00Z; the time of deployment if not set."""
    timezone: str = "Etc/UTC"
    active: bool = True

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.interval is None):
            raise IgptError(f"schedule {self.slug}: give either cron or interval")
        if self.anchor_date is not None and self.interval is None:
            raise IgptError(f"schedule {self.slug}: anchor_date is only for interval; leave it out beside cron")


@dataclass(frozen=True, kw_only=True)
class WorkPoolEntry:
    """The work pool whose workers run a deployment."""

    name: str
    job_variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DeploymentEntry(Config):
    """One deployment of the file, with the field names of Prefect's own format."""

    shown_by: ClassVar[str] = "infra/prefect.yaml"

    name: str
    entrypoint: str
    """The flow, as package.module.function."""
    work_pool: WorkPoolEntry
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    schedules: list[ScheduleEntry] = field(default_factory=list)
    triggers: list[dict[str, Any]] = field(default_factory=list)
    """Events that start a run, in Prefect's format."""
    enforce_parameter_schema: bool = True


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """A checked deployment: its flow can be imported and accepts its parameters."""

    entry: DeploymentEntry
    flow: Flow[..., Any]

    @property
    def full_name(self) -> str:
        """The name FLOW/DEPLOYMENT that Prefect's commands take."""
        return f"{self.flow.name}/{self.entry.name}"

    @property
    def config(self) -> Config | None:
        """The flow's parameter `config`; None when it has none."""
        kind = get_type_hints(self.flow.fn).get("config")
        if not isinstance(kind, type) or not issubclass(kind, Config):
            return None
        return config_file.load_fields(kind, self.entry.parameters["config"], origin=self.full_name)


def read(path: Path, only: Sequence[str] = ()) -> list[Deployable]:
    """Read and check the deployments of a file, or only the named ones. Raises IgptError for invalid ones."""
    deployments = config_file.read_file(path).get("deployments")
    if not deployments or not isinstance(deployments, list):
        raise IgptError(f"{path}: it has no list of deployments; compare it with infra/prefect.yaml")
    entries = [
        config_file.load_fields(DeploymentEntry, fields, origin=f"{path}: deployment {number}")
        for number, fields in enumerate(deployments, 1)
    ]
    unknown = set(only) - {entry.name for entry in entries}
    if unknown:
        names = ", ".join(entry.name for entry in entries)
        raise IgptError(f"{path}: no deployment {sorted(unknown)[0]!r}; it has {names}")
    return [
        _check(entry, fields.get("parameters") or {}, path)
        for entry, fields in zip(entries, deployments, strict=True)
        if not only or entry.name in only
    ]


def _check(entry: DeploymentEntry, untyped_parameters: Mapping[str, Any], path: Path) -> Deployable:
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(entry.entrypoint, use_placeholder_flow=False)
    except (ImportError, AttributeError, MissingFlowError, ValueError, TypeError) as error:
        raise IgptError(f"{path}: {entry.name}: {entry.entrypoint} is not a flow ({error})") from None
    # Placeholders for the parameters that an event will set.
    from_events = {name: "" for trigger in entry.triggers for name in trigger.get("parameters", {})}
    try:
        parameters = _typed_parameters(flow, untyped_parameters)
        flow.validate_parameters({**parameters, **from_events})
    except (ParameterTypeError, IgptError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise IgptError(f"{path}: {entry.name}: {flow.name} does not accept its parameters ({reason})") from None
    deployable = Deployable(entry=replace(entry, parameters=parameters), flow=flow)
    try:
        _deployment(deployable)
    except (ValueError, TypeError, OverflowError) as error:  # of Prefect's models: no such cron, timezone or trigger
        reason = " ".join(str(error).split())
        raise IgptError(f"{path}: {entry.name}: not a deployment for Prefect ({reason})") from None
    return deployable


def _typed_parameters(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Convert parameters to the types of the flow's schema: configs become nested, numbers in text become numbers.

    The server validates them against that schema before any of our code runs.
    """
    kinds = get_type_hints(flow.fn)
    return {
        str(name): values.typed(kinds[name], value, name)
        if isinstance(kinds.get(name), type) and issubclass(kinds[name], Config)
        else values.resolved(value)
        for name, value in parameters.items()
    }


def register(deployables: Sequence[Deployable], say: Callable[[str], None]) -> None:
    """Create or update the deployments and their work pools; `say` gets a line for each."""
    template = _job_template()
    with get_client(sync_client=True) as client:
        for pool in sorted({deployable.entry.work_pool.name for deployable in deployables}):
            try:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
            except ObjectAlreadyExists:
                # That alone, not with `overwrite`: a pool that somebody has paused, as for an upgrade, stays paused.
                client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))
            say(f"work pool {pool}")
    for deployable in deployables:
        _deployment(deployable).apply()
        schedules = [schedule.cron or f"every {schedule.interval:g} s" for schedule in deployable.entry.schedules]
        say(f"deployment {deployable.full_name} ({', '.join(schedules) or 'no schedule'})")


def _job_template() -> dict[str, Any]:
    """Prefect's template of a process pool, with a command that starts a run's driver apart from its worker."""
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["command"]["default"] = _LAUNCHER
    return template


def _deployment(deployable: Deployable) -> RunnerDeployment:
    entry = deployable.entry
    # Not flow.to_deployment, which returns a coroutine if the caller has an event loop.
    return RunnerDeployment.from_flow(
        deployable.flow,
        name=entry.name,
        schedules=[
            Schedule(
                cron=s.cron,
                interval=None if s.interval is None else timedelta(seconds=s.interval),
                anchor_date=s.anchor_date or datetime.now(UTC),
                timezone=s.timezone,
                active=s.active,
                slug=s.slug,
            )
            for s in entry.schedules
        ],
        triggers=[DeploymentEventTrigger.model_validate(trigger) for trigger in entry.triggers],
        parameters=entry.parameters,
        description=entry.description,
        tags=entry.tags,
        enforce_parameter_schema=entry.enforce_parameter_schema,
        work_pool_name=entry.work_pool.name,
        job_variables=entry.work_pool.job_variables,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def register_automations(
    notify: str | None, say: Callable[[str], None], *, silent_for: timedelta = _HEARTBEAT_TIMEOUT
) -> None:
    """Let the server close runs without a heartbeat, and announce failed ones through `notify` (TYPE/NAME of a block).

    Without `notify`, through every notification block named igpt. `say` gets a line for each automation, and one if
    nobody is told.
    """
    automations = [_close_silent(silent_for)]
    blocks = _default_blocks() if notify is None else [_block_id(notify)]
    if blocks:
        automations.append(_notification(blocks))
    with get_client(sync_client=True) as client:
        if not blocks and not client.read_automations_by_name(NOTIFY_AUTOMATION):
            say(
                f"nobody is told of runs that fail: create a notification block named {NOTIFIER} on Prefect's page "
                "Blocks, then deploy again"
            )
        for automation in automations:
            existing = client.read_automations_by_name(automation.name)
            if existing:
                client.update_automation(existing[0].id, automation)
            else:
                client.create_automation(automation)
            say(f"automation {automation.name}")


def _close_silent(silent_for: timedelta) -> AutomationCore:
    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=SILENT_AUTOMATION,
        description="A process that was killed leaves its run in the state Running.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *_ENDED},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silent_for,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"{SILENT} for {silent_for.total_seconds():.0f} s; the next run continues its work",
            )
        ],
    )


def _notification(block_ids: Sequence[UUID]) -> AutomationCore:
    return AutomationCore(
        name=NOTIFY_AUTOMATION,
        description="One message for each deployed run that failed, and none for its subflow runs.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.id": ["prefect.deployment.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="{{ flow.name }} {{ flow_run.state.name }}",
                body="{{ flow.name }}, run {{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
            for block_id in block_ids
        ],
    )


def _default_blocks() -> list[UUID]:
    with get_client(sync_client=True) as client:
        blocks = client.read_block_documents(include_secrets=False)
    return [
        block.id
        for block in blocks
        if block.name == NOTIFIER and block.block_schema is not None and "notify" in block.block_schema.capabilities
    ]


def _block_id(slug: str) -> UUID:
    """The id of a notification block. Raises IgptError when the server has no such block."""
    kind, slash, name = slug.partition("/")
    if not slash:
        raise IgptError(f"{slug!r} is not a block: write TYPE/NAME, as in slack-webhook/ops")
    with get_client(sync_client=True) as client:
        try:
            block = client.read_block_document_by_name(name=name, block_type_slug=kind, include_secrets=False)
        except ObjectNotFound:
            raise IgptError(f"the Prefect server has no block {slug}; create it on its page Blocks first") from None
    return block.id
