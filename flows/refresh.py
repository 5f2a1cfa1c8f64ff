"""The flow of the whole pipeline: raw images to a dataset, a trained model, its probe and a registered version."""

import math
from dataclasses import dataclass, replace
from urllib.parse import quote

from prefect import flow
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows.build_dataset import build_dataset
from flows.config.refresh import RefreshConfig
from flows.prefect_ops import artifacts
from flows.prefect_ops.failures import in_one_line
from flows.pretrain import PretrainOutcome, pretrain
from flows.probe import ProbeOutcome, probe
from flows.services import settings
from flows.terminal.console import Reporter
from flows.terminal.memory import StageMeter
from igpt_model.registry import client, gate, register
from igpt_model.registry.client import Version
from igpt_model.registry.gate import GateConfig
from igpt_model.runs.open_model import open_model, opened_once
from igpt_model.tracking import runs
from pipeline.build.build import BuildResult
from pipeline.hashing import digest
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class RefreshOutcome:
    """The results of a refresh, by stage."""

    build: BuildResult
    pretrain: PretrainOutcome
    probe: ProbeOutcome
    model_uri: str
    """The registered version, models:/{name}/{version}."""


@flow(name="refresh")
@in_one_line
def refresh(config: RefreshConfig) -> RefreshOutcome:
    """Build the dataset, pretrain on it, probe the features and register the model as the candidate."""
    return run_stages(config, StageMeter())


def run_stages(config: RefreshConfig, meter: StageMeter) -> RefreshOutcome:
    """Run the stages of a refresh, each as a subflow of the caller; `meter` measures each."""
    services = settings.load()
    # Check first what the last stages need, so that a long training does not fail at an unreachable server.
    runs.check_reachable(services.mlflow_tracking_uri)
    for url in (config.dataset.raw, config.dataset.dataset, config.pretrain.keeping.runs):
        objects.check_reachable(objects.absolute(url))
    with meter.measure("build_dataset"):
        built = build_dataset(config.dataset)
    with opened_once():
        return _train_probe_and_register(config, services, built, meter)


def _train_probe_and_register(
    config: RefreshConfig, services: settings.Settings, built: BuildResult, meter: StageMeter
) -> RefreshOutcome:
    dataset, number = built.snapshot.dataset, built.snapshot.number
    with meter.measure("pretrain"):
        trained = pretrain(config.pretrain.with_fields(dataset=dataset, snapshot=number))
    with meter.measure("probe"):
        probed = probe(
            replace(config.probe, model=trained.run, dataset=dataset, snapshot=number), mlflow_run=trained.mlflow_run
        )
    with meter.measure("register"):
        uri = _register(config, services, trained, probed)
    return RefreshOutcome(build=built, pretrain=trained, probe=probed, model_uri=uri)


def _register(
    config: RefreshConfig, services: settings.Settings, trained: PretrainOutcome, probed: ProbeOutcome
) -> str:
    reporter = Reporter("register")
    reporter("upload", 0, 0, "the model")
    result, data = probed.result, trained.snapshot
    held_out = sorted(shard.sha256 for shard in data.shards if shard.split != "train")
    tags = {
        **runs.lineage_tags(data),
        "igpt.run": trained.run,
        "igpt.probe_best_layer": str(result.best_layer),
        "igpt.probe_test_accuracy": f"{result.best.test_accuracy:.5f}",
        gate.BITS: f"{trained.result.validation_loss / math.log(2):.5f}",
        gate.ACCURACY: f"{result.best.validation_accuracy:.5f}",
        gate.SPLITS: digest(held_out),
    }
    version = register.register(
        open_model(trained.run, client.Registry(services.mlflow_tracking_uri).open),
        name=config.pretrain.tracking.model_name,
        tracking_uri=services.mlflow_tracking_uri,
        run_id=trained.mlflow_run,
        tags=tags,
        best_layer=result.best_layer,
        head=result.head,
    )
    reporter.close()
    reporter.say(f"{version.uri}, alias {client.CANDIDATE}")
    page = f"{services.mlflow_tracking_uri.rstrip('/')}/#/models/{quote(version.name)}/versions/{version.number}"
    artifacts.link("registered-model", page, version.uri)
    get_run_logger().info("registered %s", version.uri)
    # Triggers deployments that wait for it, such as the probe in infra/prefect.yaml.
    resource = {"prefect.resource.id": f"igpt.model.{version.name}"}
    emit_event("igpt.model.registered", resource=resource, payload={"uri": version.uri})
    if config.promotion is not None:
        _promote(version, services.mlflow_tracking_uri, config.promotion, reporter)
    return version.uri


def _promote(version: Version, tracking_uri: str, config: GateConfig, reporter: Reporter) -> None:
    """Make the version the champion if it passes the gate; the refresh succeeds either way."""
    if client.CHAMPION in version.aliases:
        reporter.say(f"{version.uri} is already the {client.CHAMPION}")
        return
    decision = client.Registry(tracking_uri).promote(version.uri, config).decision
    reporter.say(f"{version.uri}: " + (f"promoted to {client.CHAMPION}" if decision.passed else decision.text))
    get_run_logger().info("%s: %s", version.uri, decision.text)
