"""The scheduled flow: raw images to a dataset snapshot, a trained model, its probe, and a registered version."""

import math
from dataclasses import dataclass, replace

from prefect import flow
from prefect.artifacts import create_link_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows import settings
from flows.build_dataset import build_dataset
from flows.configuration import RefreshConfig
from flows.console import Reporter
from flows.memory import StageMeter
from flows.pretrain import PretrainOutcome, pretrain
from flows.probe import ProbeOutcome, probe
from igpt_model import registered, tracking
from igpt_model.model_source import load_run
from pipeline import storage
from pipeline.build import BuildResult


@dataclass(frozen=True, kw_only=True)
class RefreshOutcome:
    """What a refresh came to."""

    build: BuildResult
    pretrain: PretrainOutcome
    probe: ProbeOutcome
    model_uri: str
    """The registered version, models:/{name}/{version}."""


@flow(name="refresh")
def refresh(config: RefreshConfig) -> RefreshOutcome:
    """Build the dataset, pretrain on it, probe the features and register the model as the candidate."""
    return run_stages(config, StageMeter())


def run_stages(config: RefreshConfig, meter: StageMeter) -> RefreshOutcome:
    """The stages of a refresh, each a flow run of its own below the caller's; `meter` learns what each took."""
    known = settings.load()
    # What the last stages need is looked at first: a night's training is not to end at a server that is not there.
    tracking.check_reachable(known.mlflow_tracking_uri)
    for url in (config.dataset.raw, config.dataset.dataset, config.pretrain.runs):
        storage.check_reachable(storage.absolute(url))
    with meter.measure("build_dataset"):
        built = build_dataset(config.dataset)
    dataset, number = built.snapshot.dataset, built.snapshot.number
    with meter.measure("pretrain"):
        trained = pretrain(replace(config.pretrain, dataset=dataset, snapshot=number))
    with meter.measure("probe"):
        probed = probe(
            replace(config.probe, model=trained.run, dataset=dataset, snapshot=number), mlflow_run=trained.mlflow_run
        )
    with meter.measure("register"):
        uri = _register(config, known, trained, probed)
    return RefreshOutcome(build=built, pretrain=trained, probe=probed, model_uri=uri)


def _register(config: RefreshConfig, known: settings.Settings, trained: PretrainOutcome, probed: ProbeOutcome) -> str:
    reporter = Reporter("register")
    reporter("upload", 0, 0, "the model")
    tags = {
        **tracking.lineage_tags(trained.snapshot),
        "igpt.run": trained.run,
        "igpt.validation_bits_per_pixel": f"{trained.result.validation_loss / math.log(2):.5f}",
        "igpt.probe_best_layer": str(probed.result.best_layer),
        "igpt.probe_test_accuracy": f"{probed.result.best.test_accuracy:.5f}",
    }
    uri = registered.register(
        load_run(trained.run),
        name=config.pretrain.model_name,
        tracking_uri=known.mlflow_tracking_uri,
        run_id=trained.mlflow_run,
        tags=tags,
        best_layer=probed.result.best_layer,
    )
    reporter.close()
    reporter.say(f"{uri}, alias {registered.CANDIDATE}")
    name, version = uri.removeprefix("models:/").split("/")
    create_link_artifact(
        key="registered-model",
        link=f"{known.mlflow_tracking_uri.rstrip('/')}/#/models/{name}/versions/{version}",
        link_text=uri,
    )
    get_run_logger().info("registered %s", uri)
    # A deployment may wait for it, as the probe in infra/prefect.yaml does.
    emit_event("igpt.model.registered", resource={"prefect.resource.id": f"igpt.model.{name}"}, payload={"uri": uri})
    return uri
