"""The flow that evaluates a model's features with classifiers on a labelled dataset."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from flows import trust
from flows.prefect_ops import artifacts, ray_job
from flows.prefect_ops.failures import in_one_line
from flows.prefect_ops.names import making
from flows.prefect_ops.progress_page import ProgressPage
from flows.prefect_ops.termination import terminable
from flows.probe_report import describe, metrics, table
from flows.report import assemble, deliver, origin
from flows.report.content import Report
from flows.services import settings
from flows.terminal.console import Reporter
from flows.terminal.memory import StageMeter
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.config import ProbeConfig
from igpt_model.probing.ray import probe_on_cluster
from igpt_model.probing.result import ProbeResult
from igpt_model.registry import gate
from igpt_model.registry.client import CANDIDATE, PROBED_AT, Registry, Version
from igpt_model.registry.register import check_has_run, register_probed, write_card
from igpt_model.runs.open_model import open_model
from igpt_model.tracking import figures, runs, sheets
from igpt_model.tracking.runs import RunLogger
from pipeline.cluster.metrics import Meter
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.progress import together
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class ProbeOutcome:
    """The results of a probe, and the accuracy curve over the layers as a PNG file."""

    result: ProbeResult
    classes: tuple[str, ...]
    """The names of the dataset's classes."""
    curve: bytes
    report: Path | None = None
    """The report's file; None where it was given no folder, could not be made, or is part of a refresh's."""


@flow(name="probe", flow_run_name=making("probe {}", "config.model"))
@in_one_line
def probe(config: ProbeConfig, mlflow_run: str | None = None, folder: Path | None = None) -> ProbeOutcome:
    """Evaluate a model on a labelled dataset with classifiers on the features of every layer.

    The metrics of a registered version are logged to the version and its run; of any other model, to `mlflow_run`,
    which a refresh gives, whose report is of the probe too. Any other probe leaves a report of its own, as report.html
    in `folder` and with the version's run.
    """
    services = settings.load()
    for name in ("model", "dataset"):
        if not getattr(config, name):
            raise IgptError(f"{name} is empty: give it a value, as in `igpt probe {name}=...`")
    if config.checkpoints == "all":
        raise IgptError("checkpoints is all: only the command `igpt probe` draws a figure of many checkpoints")
    data = snapshot.read(config.dataset, config.snapshot)
    bundle, version = _load(config.model, services.mlflow_tracking_uri)
    if config.register:
        if version is None:
            raise IgptError(
                f"register is set and model is {config.model}: give a registered version, as models:/NAME/1"
            )
        check_has_run(version)
    ray_job.begin(services.ray_address, "probe")
    reporter, stages = Reporter("probe"), StageMeter()
    is_own = mlflow_run is None
    measured = stages.measure("probe") if is_own else nullcontext()
    with measured, terminable(), ProgressPage() as page, Meter("probe", config.model) as meter:
        result = probe_on_cluster(bundle, data, config, progress=together(reporter, meter.progress, page))
    curve, registered = figures.probe_curve(result), None
    if version is not None:  # first: the run of a copied version may be gone
        version = _log_version(trust.registry(services.mlflow_tracking_uri), version, result, data)
    run = mlflow_run if version is None else version.run_id
    trained_on_it = version is None or runs.trained_on(version.tags, data)
    prefix = "" if trained_on_it else f"{runs.valid_name(objects.name_of(data.dataset))}."
    prefix += "" if config.pooling == "mean" else f"{config.pooling}."
    logger = RunLogger(services.mlflow_tracking_uri, run) if run else None
    if logger is not None:
        _log(logger, bundle, result, curve, data, prefix)
        if version is None:
            _log_new(logger, {name: [value] for name, value in metrics(result).items()})
    if version is not None and config.register:
        reporter("register", 0, 0, "the model with its probe")
        registered = _register(version, bundle, result, data, services.mlflow_tracking_uri)
    artifacts.table("probe", table(result, data.classes), describe(result))
    get_run_logger().info(describe(result))
    reporter.close()
    reporter.say(f"features of {result.shards_computed} shards computed, of {result.shards_cached} found in the cache")
    reporter.say(describe(result))
    if registered is not None:
        reporter.say(f"{registered.uri}, alias {CANDIDATE}, classifies")
    report = None
    if is_own:
        model = config.model if version is None else version.uri

        def make() -> Report:
            made_by = origin.of_this_run(
                model=model, mlflow_run=run or "", mlflow_url="" if logger is None else logger.url
            )
            return assemble.of_probe(config, result, data, stages.costs, made_by)

        name = f"{prefix}probe-{deliver.FILE}"  # beside the report of the refresh that made the version
        report = deliver.deliver(make, logger=logger, name=name, folder=folder, reporter=reporter)
    return ProbeOutcome(result=result, classes=data.classes, curve=curve, report=report)


def _load(model: str, tracking_uri: str) -> tuple[ModelBundle, Version | None]:
    """The model to evaluate, and its version if it is a registered one."""
    registry = trust.registry(tracking_uri)
    if not model.startswith("models:"):
        return open_model(model, registry.open), None
    runs.check_reachable(tracking_uri)
    version = registry.find(model)
    return open_model(version.uri, registry.open), version


def _log(
    logger: RunLogger, bundle: ModelBundle, result: ProbeResult, curve: bytes, data: Snapshot, prefix: str
) -> None:
    """Log the curve over layers and the pictures to a run; `prefix` names a dataset that it was not trained on."""
    by_layer = {
        f"{prefix}probe_test_accuracy": [score.test_accuracy for score in result.layers],
        f"{prefix}probe_untrained_test_accuracy": [score.test_accuracy for score in result.untrained_layers],
    }
    _log_new(logger, by_layer)  # with the layer as the step, so that MLflow draws the curve
    logger.file(curve, f"{prefix}probe.png")
    if result.confusion_KK is not None:
        logger.file(figures.confusion_matrix(result.confusion_KK, data.classes), f"{prefix}confusion.png")
    if result.sheet is not None:
        logger.picture(sheets.neighbour_sheet(bundle, result.sheet), f"{prefix}neighbours.png")


def _log_new(logger: RunLogger, values: Mapping[str, Sequence[float]]) -> None:
    """Log metrics by step from 0 on, except values that an earlier probe has logged already."""
    for name, steps in values.items():
        logged = dict(logger.metric_history(name))
        for step, value in enumerate(steps):
            if logged.get(step) != value:
                logger.metrics(step, {name: value})


def _log_version(registry: Registry, version: Version, result: ProbeResult, data: Snapshot) -> Version:
    """Record the results with a version: as tags named after the dataset, in its card, and as metrics of its model.

    Returns the version with them.
    """
    values = metrics(result).items()
    tags = {runs.probe_tag(data, key.removeprefix("probe_")): f"{value:.5f}" for key, value in values}
    of_snapshot = "snapshot" if result.pooling == "mean" else f"{result.pooling}_snapshot"
    tags[runs.probe_tag(data, of_snapshot)] = f"{data.number} {data.content_digest}"
    tags[PROBED_AT] = f"{time.time():.0f}"
    # The promotion gate compares accuracies on the dataset that the model was trained on, of averaged features alone.
    if result.pooling == "mean" and runs.trained_on(version.tags, data):
        tags[gate.ACCURACY] = f"{result.best.validation_accuracy:.5f}"
        tags["igpt.probe_test_accuracy"] = f"{result.best.test_accuracy:.5f}"
    registry.tag(version, tags)
    version = registry.find(version.uri)
    write_card(registry, version)
    registry.measure(version, metrics(result), dataset=data.dataset, digest=data.content_digest)
    return version


def _register(version: Version, bundle: ModelBundle, result: ProbeResult, data: Snapshot, tracking_uri: str) -> Version:
    """Register the probed version with its probe, which knows the classes of the dataset."""
    assert result.head is not None
    return register_probed(
        replace(bundle, classes=tuple(data.classes)),
        version,
        tracking_uri=tracking_uri,
        dataset=f"{data.dataset}, snapshot {data.number}",
        best_layer=result.best_layer,
        head=result.head,
        key=settings.store_key("register"),
        signer=trust.signer(),
    )[0]
