"""The flow of the whole pipeline: raw images to a dataset, a trained model, its probe and a registered version."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from prefect import flow
from prefect.logging import get_run_logger

from flows import earlier_runs, trust
from flows.build_dataset import build_dataset
from flows.config.refresh import RefreshConfig
from flows.prefect_ops import artifacts, events, ray_job
from flows.prefect_ops.failures import in_one_line
from flows.prefect_ops.names import making
from flows.prefect_ops.progress_page import ProgressPage
from flows.pretrain import PretrainOutcome, pretrain
from flows.probe import ProbeOutcome, probe
from flows.report import assemble, deliver, origin
from flows.report.content import Report
from flows.same_images import SameImages
from flows.services import settings
from flows.terminal.console import Reporter
from flows.terminal.memory import StageMeter
from igpt_model.config import PretrainConfig
from igpt_model.evaluating.ray import Executor
from igpt_model.probing.config import ProbeConfig
from igpt_model.registry import client, gate, register
from igpt_model.registry.client import Version
from igpt_model.registry.gate import GateConfig
from igpt_model.runs import attempts, initial_model
from igpt_model.runs.open_model import open_model, opened_once
from igpt_model.tracking import runs
from igpt_model.tracking.runs import RunLogger
from pipeline.build.build import BuildResult
from pipeline.dataset.snapshot import Snapshot
from pipeline.progress import Progress
from pipeline.store import objects

_STAGES = 4  # build, train, probe, register


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The results of a training and what follows it, by stage."""

    pretrain: PretrainOutcome
    probe: ProbeOutcome
    model_uri: str
    """The registered version, models:/{name}/{version}."""


@dataclass(frozen=True, kw_only=True)
class RefreshOutcome(Registered):
    """The results of a refresh, by stage: the training on the newest snapshot, not one that was finished before it."""

    build: BuildResult
    report: Path | None = None
    """The report's file; None where it was given no folder, or could not be made."""


@flow(name="refresh", flow_run_name=making("refresh {}", "config.pretrain.tracking.model_name"))
@in_one_line
def refresh(config: RefreshConfig, folder: Path | None = None) -> RefreshOutcome:
    """Build the dataset, pretrain on it, probe the features and register the model as the candidate.

    A run of the same recipe that was begun on an earlier snapshot is finished, probed and registered first. The report
    is kept with the MLflow run, and as report.html in `folder`.
    """
    meter = StageMeter()
    outcome = run_stages(config, meter)
    return replace(outcome, report=leave_report(config, outcome, meter, folder))


def leave_report(
    config: RefreshConfig,
    outcome: RefreshOutcome,
    meter: StageMeter,
    folder: Path | None,
    further: assemble.Further = assemble.NOTHING_FURTHER,
) -> Path | None:
    """Make the report of a refresh and keep it with its MLflow run, and in a folder; returns its file."""
    trained, services = outcome.pretrain, settings.load()
    logger = RunLogger(services.mlflow_tracking_uri, trained.mlflow_run)

    def make() -> Report:
        ray_job.begin(services.ray_address, "build")  # rejected images are decoded with the key of a build
        made_by = origin.of_this_run(
            model=outcome.model_uri,
            parent=initial_model.of_run(trained.run),
            run=trained.run,
            mlflow_run=trained.mlflow_run,
            mlflow_url=trained.mlflow_url,
        )
        return assemble.of_refresh(
            config, outcome.build, trained, outcome.probe.result, meter.costs, made_by, logger, further
        )

    return deliver.deliver(make, logger=logger, name=deliver.FILE, folder=folder, reporter=Reporter("report"))


def run_stages(config: RefreshConfig, meter: StageMeter) -> RefreshOutcome:
    """Run the stages of a refresh, each as a subflow of the caller; `meter` measures each."""
    services = settings.load()
    # Check first what the last stages need, so that a long training does not fail at an unreachable server.
    runs.check_reachable(services.mlflow_tracking_uri)
    for url in (config.dataset.raw, config.dataset.dataset, config.pretrain.keeping.runs):
        objects.check_reachable(objects.absolute(url))
    with ProgressPage() as page:
        page("build the dataset", 0, _STAGES, "stages")
        with meter.measure("build_dataset"):
            built = build_dataset(config.dataset)
        wanted = config.pretrain.with_fields(dataset=built.snapshot.dataset, snapshot=built.snapshot.number)
        earlier = earlier_runs.decide(wanted, built.snapshot, config.unfinished, services.mlflow_tracking_uri)
        if earlier is not None:
            with opened_once(), earlier_runs.unless_given_up():
                _train_probe_and_register(config, earlier.config(wanted), services, meter, page)
        with opened_once():
            new = _train_probe_and_register(config, wanted, services, meter, page)
    return RefreshOutcome(build=built, **vars(new))


def _train_probe_and_register(
    config: RefreshConfig, training: PretrainConfig, services: settings.Settings, meter: StageMeter, progress: Progress
) -> Registered:
    dataset, number = training.data.dataset, training.data.snapshot
    detail = f"stages, on snapshot {number}"
    progress("train", 1, _STAGES, detail)
    with meter.measure("pretrain"):
        trained = pretrain(training, to_register=True)
    # Failures count here too, so that a run that cannot be probed does not keep later snapshots waiting for ever.
    with attempts.counted(trained.run) if attempts.awaits_registration(trained.run) else nullcontext():
        progress("probe", 2, _STAGES, detail)
        with meter.measure("probe"):
            model = replace(config.probe, model=trained.run, dataset=dataset, snapshot=number)
            probed = probe(model, mlflow_run=trained.mlflow_run)
        progress("register", 3, _STAGES, detail)
        with meter.measure("register"):
            uri = _register(config, services, trained, probed)
            attempts.note_registration(trained.run, uri)
    return Registered(pretrain=trained, probe=probed, model_uri=uri)


def _register(
    config: RefreshConfig, services: settings.Settings, trained: PretrainOutcome, probed: ProbeOutcome
) -> str:
    reporter = Reporter("register")
    reporter("upload", 0, 0, "the model")
    result, data = probed.result, trained.snapshot
    tags = {
        **runs.lineage_tags(data),
        "igpt.run": trained.run,
        register.BEST_LAYER: str(result.best_layer),
        "igpt.probe_test_accuracy": f"{result.best.test_accuracy:.5f}",
        gate.BITS: f"{trained.result.validation_loss / math.log(2):.5f}",
        gate.ACCURACY: f"{result.best.validation_accuracy:.5f}",
        gate.SPLITS: runs.splits_digest(data),
    }
    version = register.register(
        open_model(trained.run, trust.registry(services.mlflow_tracking_uri).open),
        name=config.pretrain.tracking.model_name,
        tracking_uri=services.mlflow_tracking_uri,
        run_id=trained.mlflow_run,
        tags=tags,
        best_layer=result.best_layer,
        head=result.head,
        key=settings.store_key("register"),
        signer=trust.signer(),
    )
    reporter.close()
    reporter.say(f"{version.uri}, alias {client.CANDIDATE}")
    page = f"{services.mlflow_tracking_uri.rstrip('/')}/#/models/{quote(version.name)}/versions/{version.number}"
    artifacts.link("registered-model", page, version.uri)
    get_run_logger().info("registered %s", version.uri)
    # Triggers deployments that wait for it, such as the probe in infra/prefect.yaml.
    events.announce("igpt.model.registered", f"igpt.model.{version.name}", {"uri": version.uri})
    if config.promotion is not None:
        _promote(version, services.mlflow_tracking_uri, config.promotion, config.probe, reporter)
    return version.uri


def _promote(
    version: Version, tracking_uri: str, config: GateConfig, probe_config: ProbeConfig, reporter: Reporter
) -> None:
    """Make the version the champion if it passes the gate; the refresh succeeds either way.

    A champion that was trained on other images is evaluated and probed on those of this version.
    """

    def probe_version(other: Version, data: Snapshot) -> None:
        # The gate compares linear probes: no network is trained for it.
        linear = replace(probe_config, fine_tune=None, supervised=None, labels_per_class=(), neighbours=())
        probe(replace(linear, model=other.uri, dataset=data.dataset, snapshot=data.number))

    if client.CHAMPION in version.aliases:
        reporter.say(f"{version.uri} is already the {client.CHAMPION}")
        return
    registry = trust.registry(tracking_uri)
    same_images = SameImages(
        registry=registry, gate=config, executor=Executor.cluster, probe=probe_version, progress=reporter
    )
    decision = registry.promote(version.uri, config, same_images).decision
    reporter.say(f"{version.uri}: " + (f"promoted to {client.CHAMPION}" if decision.passed else decision.text))
    get_run_logger().info("%s: %s", version.uri, decision.text)
