"""The flow that trains an Image GPT on a dataset snapshot, and logs its metrics and sample images."""

import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows import trust, version
from flows.prefect_ops import artifacts, ray_job
from flows.prefect_ops.failures import in_one_line
from flows.prefect_ops.lease import exclusively
from flows.prefect_ops.names import making
from flows.prefect_ops.progress_page import ProgressPage
from flows.previews import CheckpointPreviews, draw_all
from flows.services import settings
from flows.terminal.console import Reporter
from igpt_model.config import PretrainConfig
from igpt_model.model.losses import Baselines, baselines
from igpt_model.registry.client import Registry
from igpt_model.runs import attempts, initial_model, metric_log, record
from igpt_model.runs.open_model import open_model
from igpt_model.runs.record import RunRecord
from igpt_model.runs.result import TrainResult, finished
from igpt_model.tracking import runs
from igpt_model.tracking.curve_logger import CurveLogger
from igpt_model.tracking.runs import RunLogger
from igpt_model.tracking.sheets import to_png
from igpt_model.training.metric_names import TRAINING_METRICS
from igpt_model.training.ray import (
    ClusterTooSmallError,
    TrainJob,
    WorkersDiedError,
    await_resources,
    train_on_cluster,
)
from pipeline.cluster import tasks
from pipeline.cluster.metrics import Meter
from pipeline.dataset import count_shards, snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent, together
from pipeline.store import objects
from pipeline.store.lease import Fence

# How long a failed training may take to send its last metrics to MLflow.
_FINAL_FLUSH_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class PretrainOutcome:
    """A finished training run: its folder, its results, and its pictures as PNG files."""

    run: str
    """The run's folder."""
    snapshot: Snapshot
    result: TrainResult
    baselines: Baselines
    mlflow_run: str
    mlflow_url: str
    sheets: dict[str, bytes]
    """Image sheets by name: samples and completions, or those that suit another kind of model."""
    loss_curve: bytes


_NAME = making(
    "train {} on {}, snapshot {}", "config.tracking.model_name", "config.data.dataset", "config.data.snapshot"
)


@flow(name="pretrain", flow_run_name=_NAME)
@in_one_line
def pretrain(config: PretrainConfig, to_register: bool = False) -> PretrainOutcome:
    """Train on a dataset snapshot, or continue an unfinished run; log metrics and pictures to MLflow.

    A finished run is not trained again. One whose workers died is taken up again after a pause. With `to_register` the
    caller registers the model, which the run's folder says, so that a later process can if this one dies. Raises
    AbandonedError for a run that was given up, now or before.
    """
    services = settings.load()
    runs.check_reachable(services.mlflow_tracking_uri)
    data = snapshot.read(config.given_dataset, config.data.snapshot)
    data.of_split("validation")
    objects.check_reachable(objects.absolute(config.keeping.runs))
    registry = trust.registry(services.mlflow_tracking_uri)
    reporter = Reporter("pretrain")
    alias = config.model.parent if config.model.parent_is_alias else ""
    if alias:
        config = config.with_fields(parent=_version_of(alias, config, data, registry, reporter))
    run = record.folder_of(config, data)
    config = record.as_begun(config, run)
    ray_job.begin(services.ray_address, "train")
    tags = {
        "igpt.prefect_run": str(flow_run.id or ""),
        "igpt.prefect_url": f"{services.prefect_url}/runs/flow-run/{flow_run.id}",
    }
    if commit := version.commit(settings.git_commit()):
        tags |= version.commit_tags(commit)
    # A finished run is only read: nothing is written to its folder, not even a lease.
    done = finished(config, data, run) is not None
    with nullcontext() if done else exclusively(run, reporter.say) as fence, ProgressPage() as page:
        if not done:
            attempts.refuse_abandoned(run)
            _keep_parent(run, config, data, alias, registry)
            if to_register:
                attempts.await_registration(run)
        if started_from := initial_model.of_run(run):
            tags["igpt.parent_model"] = started_from
        while True:
            if not done:
                _wait_or_give_up(run, config, services.mlflow_tracking_uri, reporter, page)
            logger = open_tracked(config, data, run, tags, services.mlflow_tracking_uri, reporter)
            try:
                with logger.closing():
                    if not done:  # the workers write it too, but a run that never comes so far must be resumable
                        await_resources(config, reporter.say)
                        record.write_first(run, RunRecord(config=record.pinned(config, data), mlflow_run=logger.run_id))
                    result = train_tracked(config, data, run, logger, reporter, fence, page)
                    outcome = _show(config, data, run, result, logger, reporter, page)
                break
            except WorkersDiedError as error:
                reporter.say(str(error))
    _create_artifacts(outcome)
    get_run_logger().info(describe(outcome))
    reporter.say(describe(outcome))
    return outcome


def _version_of(alias: str, config: PretrainConfig, data: Snapshot, registry: Registry, reporter: Reporter) -> str:
    """The version that an alias means for a run: the one that the run was begun from, else the one of today.

    Empty, for random weights, while the model that this training registers has no version with the alias. Raises
    IgptError when another model has none.
    """
    begun_from = initial_model.begun_from(config, data)
    if begun_from is not None:
        return begun_from
    name, _, short = alias.removeprefix("models:/").partition("@")
    if name == config.tracking.model_name and (name not in registry.names() or short not in registry.aliases_of(name)):
        reporter.say(f"parent {alias}: {name} has no {short} yet, so this run begins with random weights")
        return ""
    version = registry.find(alias).uri
    reporter.say(f"parent {alias} is {version}; this run keeps it")
    return version


def _keep_parent(run: str, config: PretrainConfig, data: Snapshot, alias: str, registry: Registry) -> None:
    """Copy the parent into the folder of a run that has not begun, or record that an alias had no version."""
    if initial_model.is_needed(run, config) and not initial_model.of_run(run):
        initial_model.keep(run, registry.open(config.model.parent), config, data, alias)
    elif alias and not config.model.parent and not initial_model.alias_of(run):
        initial_model.keep_alias(run, alias)


def _wait_or_give_up(
    run: str, config: PretrainConfig, tracking_uri: str, reporter: Reporter, progress: Progress
) -> None:
    """Wait until the pause after the last failure is over. Raises AbandonedError after too many failures."""
    failures, limit = attempts.failures(run), config.execution.max_failures
    if failures.count >= limit:
        give_up(run, f"it {failures.text}", tracking_uri, reporter)
        attempts.refuse_abandoned(run)
    pause = failures.pause(config.execution, time.time())
    if pause:
        reporter.say(f"{run} {failures.text}; attempt {failures.count + 1} of {limit} begins in {pause:.0f} s")
        begins = datetime.fromtimestamp(time.time() + pause, UTC)
        progress("pause", 0, 0, f"until {begins:%H:%M:%S} UTC for attempt {failures.count + 1} of {limit}")
        time.sleep(pause)


def give_up(run: str, reason: str, tracking_uri: str, reporter: Reporter) -> None:
    """Record in the run's folder and in MLflow that a run is given up. The caller holds its lease."""
    attempts.abandon(run, reason)
    reporter.say(f"{run} is given up: {reason}; `igpt runs resume {run}` takes it up again")
    mlflow_run = record.read(run).mlflow_run
    if mlflow_run is not None and not runs.mark_abandoned(tracking_uri, mlflow_run, reason):
        reporter.say(f"the MLflow run {mlflow_run} could not be marked as given up")


def open_tracked(
    config: PretrainConfig, data: Snapshot, run: str, tags: Mapping[str, str], tracking_uri: str, reporter: Reporter
) -> RunLogger:
    """Open the MLflow run of a training run, and close MLflow runs whose training died without closing them."""
    logger = runs.open_run(tracking_uri, config, data, run, tags)
    for abandoned in runs.close_abandoned(tracking_uri, config.tracking.experiment):
        reporter.say(f"the MLflow run {abandoned} was abandoned; marked it as killed")
    return logger


class _Listener:
    """Sends training metrics to MLflow and Prometheus, warnings to the terminal and checkpoints to the previews."""

    def __init__(
        self, curve: CurveLogger, meter: Meter, reporter: Reporter, previews: CheckpointPreviews, steps: int
    ) -> None:
        self.warn, self.saved = reporter.say, previews.saved
        self._curve, self._meter, self._steps = curve, meter, steps

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._curve.progress = f"trained {step:,} of {self._steps:,} steps"
        self._curve.metrics(step, values)
        self._meter.record(step, values)


def train_tracked(
    config: PretrainConfig,
    data: Snapshot,
    run: str,
    logger: RunLogger,
    reporter: Reporter,
    fence: Fence | None = None,
    progress: Progress = silent,
) -> TrainResult:
    """Train on the cluster, or continue, unless the run is finished; its MLflow run then has every value once."""
    curve = CurveLogger(logger, reporter.say)
    _log_missing_metrics(run, curve)
    result = finished(config, data, run)
    if result is not None:
        reporter.say(f"the run {run} is finished already, nothing to train")
        return result
    job = TrainJob(
        config=config,
        snapshot=data,
        run=run,
        mlflow_run=logger.run_id,
        flow_run_id=ray_job.flow_run_id(),
        key=tasks.key(),
        fence=fence,
    )
    try:
        with (
            CheckpointPreviews(config, data, run, logger, reporter) as previews,
            Meter("pretrain", run, TRAINING_METRICS) as meter,
        ):
            listener = _Listener(curve, meter, reporter, previews, config.optimizer.steps)
            told = together(reporter, meter.progress, progress)
            with attempts.counted(run, uncounted=(ClusterTooSmallError,)):
                result = train_on_cluster(job, listener, progress=told)
    except BaseException:
        with suppress(IgptError):
            curve.flush(seconds=_FINAL_FLUSH_SECONDS)
        raise
    _log_missing_metrics(run, curve)
    return result


def _show(
    config: PretrainConfig,
    data: Snapshot,
    run: str,
    result: TrainResult,
    logger: RunLogger,
    reporter: Reporter,
    page: Progress,
) -> PretrainOutcome:
    """Compare a finished run with its baselines, draw its sheets, and log all of it to MLflow."""
    from igpt_model.tracking import figures  # noqa: PLC0415 (loads matplotlib, for which no training should wait)

    progress = together(reporter, page)
    levels = baselines(*(count_shards.of_split(data, split, progress) for split in ("train", "validation")))
    sheets = draw_all(config, data, open_model(run, trust.registry(logger.tracking_uri).open), progress)
    level_by_name = {
        "uniform": levels.uniform,
        "unigram": levels.unigram,
        "per-position unigram": levels.position_unigram,
    }
    names = {"training": "train_loss", "validation": "validation_loss"}
    loss_curve = figures.loss_curve(
        {label: logger.metric_history(name) for label, name in names.items()}, level_by_name
    )
    for name, picture in sheets.items():
        logger.picture(picture, f"{name}.png")
    logger.file(loss_curve, "loss.png")
    curve = CurveLogger(logger, reporter.say)
    curve.metrics(
        result.steps, {f"baseline_{name.replace('-', '_').replace(' ', '_')}": v for name, v in level_by_name.items()}
    )
    curve.flush()
    logger.tags({runs.PROGRESS_TAG: f"trained {result.steps:,} of {config.optimizer.steps:,} steps, finished"})
    return PretrainOutcome(
        run=run,
        snapshot=data,
        result=result,
        baselines=levels,
        mlflow_run=logger.run_id,
        mlflow_url=logger.url,
        sheets={name: to_png(picture) for name, picture in sheets.items()},
        loss_curve=loss_curve,
    )


def _log_missing_metrics(run: str, curve: CurveLogger) -> None:
    """Log the metrics stored with the checkpoints that MLflow lacks, after a crash of this process or of MLflow."""
    for logged in metric_log.read(run):
        curve.metrics(logged.step, logged.values)
    curve.flush()


def describe(outcome: PretrainOutcome) -> str:
    """One line on the result of a training run."""
    result, levels = outcome.result, outcome.baselines
    return (
        f"validation loss {result.validation_loss:.3f} nats per pixel after {result.steps:,} steps "
        f"(uniform {levels.uniform:.2f}, unigram {levels.unigram:.2f}, per position {levels.position_unigram:.2f})"
    )


def _create_artifacts(outcome: PretrainOutcome) -> None:
    artifacts.link("mlflow-run", outcome.mlflow_url, "MLflow run", outcome.run)
    server = outcome.mlflow_url.split("/#/")[0]
    for name in outcome.sheets:
        url = f"{server}/get-artifact?path={name}.png&run_uuid={outcome.mlflow_run}"
        artifacts.image(name, url, describe(outcome))
