"""The flow that judges a model's features by linear classifiers on a labelled dataset."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from flows import settings
from flows.console import Reporter
from flows.termination import terminable
from igpt_model import curves, registered, tracking
from igpt_model.config import ProbeConfig
from igpt_model.model_folder import ModelFolder
from igpt_model.model_source import load_run
from igpt_model.probe import ProbeResult
from igpt_model.ray_probe import probe_on_cluster
from igpt_model.tracking import RunLogger
from pipeline import ray_cluster, snapshot, storage
from pipeline.errors import IgptError


@dataclass(frozen=True, kw_only=True)
class ProbeOutcome:
    """What the probes came to, and the curve over the layers as a PNG file."""

    result: ProbeResult
    curve: bytes


@flow(name="probe")
def probe(config: ProbeConfig, mlflow_run: str | None = None) -> ProbeOutcome:
    """Fit a linear classifier on the features of every layer; log to the given MLflow run, if there is one."""
    known = settings.load()
    for name in ("model", "dataset"):
        if not getattr(config, name):
            raise IgptError(f"{name} is empty: give it a value, as in `igpt probe {name}=...`")
    data = snapshot.read(config.dataset, config.snapshot)
    folder = _load(config.model, known.mlflow_tracking_uri)
    ray_cluster.connect(known.ray_address)
    reporter = Reporter("probe")
    with terminable():
        result = probe_on_cluster(folder, data, config, progress=reporter)
    curve = curves.probe_curve(result)
    if mlflow_run is not None:
        _log(RunLogger(known.mlflow_tracking_uri, mlflow_run), result, curve)
    create_table_artifact(key="probe", table=table(result), description=describe(result))
    get_run_logger().info(describe(result))
    reporter.say(describe(result))
    return ProbeOutcome(result=result, curve=curve)


def _load(model: str, tracking_uri: str) -> ModelFolder:
    if not model.startswith("models:"):
        return load_run(storage.absolute(model))
    tracking.check_reachable(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="igpt-probe-") as temporary:
        return registered.fetch(model, tracking_uri, Path(temporary))


def _log(logger: RunLogger, result: ProbeResult, curve: bytes) -> None:
    for layer, (trained, fresh) in enumerate(zip(result.layers, result.untrained_layers, strict=True)):
        values = {"probe_test_accuracy": trained.test_accuracy, "probe_untrained_test_accuracy": fresh.test_accuracy}
        logger.metrics(layer, values)  # the layer stands in the place of the step: MLflow draws the curve
    logger.metrics(
        0,
        {
            "probe_best_layer": result.best_layer,
            "probe_best_test_accuracy": result.best.test_accuracy,
            "probe_raw_pixels_test_accuracy": result.raw_pixels.test_accuracy,
        },
    )
    logger.file(curve, "probe.png")


def describe(result: ProbeResult) -> str:
    """One line on what the probes came to."""
    return (
        f"layer {result.best_layer} classifies {result.best.test_accuracy:.1%} of {result.test_images} test images "
        f"(untrained network {result.untrained_best.test_accuracy:.1%}, raw pixels "
        f"{result.raw_pixels.test_accuracy:.1%}, most frequent class {result.majority:.1%})"
    )


def table(result: ProbeResult) -> list[dict[str, object]]:
    """The test accuracies of every layer, in percent."""
    return [
        {
            "layer": layer,
            "pretrained": round(100 * trained.test_accuracy, 1),
            "untrained": round(100 * fresh.test_accuracy, 1),
            "raw pixels": round(100 * result.raw_pixels.test_accuracy, 1),
        }
        for layer, (trained, fresh) in enumerate(zip(result.layers, result.untrained_layers, strict=True))
    ]
