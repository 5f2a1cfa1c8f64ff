"""What `igpt deploy` registers with a Prefect server: deployments of a prefect.yaml, their work pool, automations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, get_type_hints
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import MissingFlowError, ObjectNotFound, ParameterTypeError
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.workers.process import ProcessWorker

from pipeline.errors import IgptError
from pipeline.typed_config import file as config_file
from pipeline.typed_config import values
from pipeline.typed_config.config import Config

_ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")}
# A run beats every half minute (PREFECT_FLOWS_HEARTBEAT_FREQUENCY). So long, that a server that is started anew does
# not take the runs for dead whose beats it missed.
_SILENT = timedelta(minutes=5)
SILENT_AUTOMATION = "igpt: close runs that fell silent"
NOTIFY_AUTOMATION = "igpt: tell of runs that failed"


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry:
    """When a deployment runs: `cron` or `interval`."""

    slug: str
    """Its name."""
    cron: str | None = None
    """Five fields of cron."""
    interval: float | None = None
    """Seconds from one run to the next."""
    anchor_date: datetime | None = None
    """A time from which the intervals are counted, as 2026-01-05T04:00:00Z; without it, that of the deploying."""
    timezone: str = "Etc/UTC"
    active: bool = True

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.interval is None):
            raise IgptError(f"schedule {self.slug}: give either cron or interval")
        if self.anchor_date is not None and self.interval is None:
            raise IgptError(f"schedule {self.slug}: anchor_date is for interval; cron says itself when")


@dataclass(frozen=True, kw_only=True)
class WorkPoolEntry:
    """Whose workers run a deployment."""

    name: str
    job_variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DeploymentEntry(Config):
    """One deployment of the file; the names are those of Prefect's own format."""

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
    """Events that run it, in Prefect's format."""
    enforce_parameter_schema: bool = True


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """A deployment whose flow is there and takes its parameters."""

    entry: DeploymentEntry
    flow: Flow[..., Any]

    @property
    def full_name(self) -> str:
        """flow/deployment, as Prefect's commands want it."""
        return f"{self.flow.name}/{self.entry.name}"


def read(path: Path, only: Sequence[str] = ()) -> list[Deployable]:
    """The deployments of a file, or those named, checked. Raises IgptError with the line that says what is wrong."""
    deployments = config_file.read_file(path).get("deployments")
    if not deployments or not isinstance(deployments, list):
        raise IgptError(f"{path}: has no list of deployments; compare with infra/prefect.yaml")
    entries = [
        config_file.load_fields(DeploymentEntry, given, origin=f"{path}: deployment {number}")
        for number, given in enumerate(deployments, 1)
    ]
    unknown = set(only) - {entry.name for entry in entries}
    if unknown:
        names = ", ".join(entry.name for entry in entries)
        raise IgptError(f"{path}: no deployment {sorted(unknown)[0]!r}; it has {names}")
    return [
        _check(entry, given.get("parameters") or {}, path)
        for entry, given in zip(entries, deployments, strict=True)
        if not only or entry.name in only
    ]


def _check(entry: DeploymentEntry, given: Mapping[str, Any], path: Path) -> Deployable:
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(entry.entrypoint, use_placeholder_flow=False)
    except (ImportError, AttributeError, MissingFlowError, ValueError, TypeError) as error:
        raise IgptError(f"{path}: {entry.name}: {entry.entrypoint} is no flow ({error})") from None
    # What an event fills in is not known yet.
    from_events = {name: "" for each in entry.triggers for name in each.get("parameters", {})}
    try:
        parameters = _typed_parameters(flow, given)
        flow.validate_parameters({**parameters, **from_events})
    except (ParameterTypeError, IgptError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise IgptError(f"{path}: {entry.name}: {flow.name} does not take its parameters ({reason})") from None
    return Deployable(entry=replace(entry, parameters=parameters), flow=flow)


def _typed_parameters(flow: Flow[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as the schema of the flow has them: those of our configs nested, with numbers for what reads as one.

    The server compares them with that schema before anything of ours sees them.
    """
    kinds = get_type_hints(flow.fn)
    return {
        str(name): values.typed(kinds[name], value, name)
        if isinstance(kinds.get(name), type) and issubclass(kinds[name], Config)
        else values.resolved(value)
        for name, value in given.items()
    }


def register(deployables: Sequence[Deployable], report: Callable[[str], None]) -> None:
    """Create the deployments and their work pools, or bring what is there up to date."""
    with get_client(sync_client=True) as client:
        for pool in sorted({each.entry.work_pool.name for each in deployables}):
            client.create_work_pool(
                WorkPoolCreate(
                    name=pool, type="process", base_job_template=ProcessWorker.get_default_base_job_template()
                ),
                overwrite=True,
            )
            report(f"work pool {pool}")
    for each in deployables:
        _deployment(each).apply()
        when = ", ".join(schedule.cron or f"every {schedule.interval:g} s" for schedule in each.entry.schedules)
        report(f"deployment {each.full_name} ({when or 'no schedule'})")


def _deployment(each: Deployable) -> RunnerDeployment:
    entry = each.entry
    # Of the class itself, not by flow.to_deployment: that decides by the caller's event loop what it returns.
    return RunnerDeployment.from_flow(
        each.flow,
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


def register_automations(notify: str | None, report: Callable[[str], None], *, silent_for: timedelta = _SILENT) -> None:
    """Let the server close runs that fell silent, and, with a notification block (type/name), tell of failed ones."""
    wanted = [_silent(silent_for)]
    if notify is not None:
        wanted.append(_notification(_block_id(notify)))
    with get_client(sync_client=True) as client:
        for automation in wanted:
            known = client.read_automations_by_name(automation.name)
            if known:
                client.update_automation(known[0].id, automation)
            else:
                client.create_automation(automation)
            report(f"automation {automation.name}")


def _silent(silent_for: timedelta) -> AutomationCore:
    beat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=SILENT_AUTOMATION,
        description="A process that died without a word leaves its run in the state Running.",
        trigger=EventTrigger(
            after={beat},
            expect={beat, *_ENDED},
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
                message=f"its process has not been heard of for {silent_for.total_seconds():.0f} s; the next run goes "
                "on with its work",
            )
        ],
    )


def _notification(block_id: UUID) -> AutomationCore:
    return AutomationCore(
        name=NOTIFY_AUTOMATION,
        description="One message for each deployed run that failed; runs below it do not count again.",
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
        ],
    )


def _block_id(slug: str) -> UUID:
    """The id of a notification block. Raises IgptError when the server does not know it."""
    kind, slash, name = slug.partition("/")
    if not slash:
        raise IgptError(f"{slug!r} is no block: write TYPE/NAME, as in slack-webhook/ops")
    with get_client(sync_client=True) as client:
        try:
            found = client.read_block_document_by_name(name=name, block_type_slug=kind, include_secrets=False)
        except ObjectNotFound:
            raise IgptError(f"the Prefect server has no block {slug}; make it on the page Blocks first") from None
    return found.id
