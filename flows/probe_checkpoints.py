"""The flow that probes every checkpoint of runs: do features get better as the loss gets lower?"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from prefect import flow

from flows.prefect_ops import artifacts, ray_job
from flows.prefect_ops.failures import in_one_line
from flows.prefect_ops.names import making
from flows.prefect_ops.progress_page import ProgressPage
from flows.prefect_ops.termination import terminable
from flows.probe_report import checkpoints_table
from flows.report import assemble, deliver, origin
from flows.report.content import Report
from flows.services import settings
from flows.terminal.console import Reporter
from flows.terminal.memory import StageMeter
from igpt_model.probing.checkpoint_scores import CheckpointScore, rank_correlation
from igpt_model.probing.config import ProbeConfig
from igpt_model.probing.ray import probe_layers
from igpt_model.runs import checkpoint, record
from igpt_model.tracking import figures
from igpt_model.tracking.runs import RunLogger
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.progress import Progress, together
from pipeline.store import objects

METRIC = "probe_by_checkpoint_test_accuracy"
FIGURE = "features_by_loss.png"


@dataclass(frozen=True, kw_only=True)
class CheckpointsOutcome:
    """The scores of all checkpoints, run by run in the order of their steps, and a figure of them as a PNG file."""

    scores: tuple[CheckpointScore, ...]
    figure: bytes
    report: Path | None = None
    """The report's file; None where it was given no folder, or could not be made."""

    @property
    def line(self) -> str:
        """One line on what came out."""
        correlation = rank_correlation(self.scores)
        text = "not defined" if correlation is None else f"{correlation:.2f}"
        return f"rank correlation of lower loss and higher accuracy over {len(self.scores)} checkpoints: {text}"


@flow(name="probe-checkpoints", flow_run_name=making("probe the checkpoints of {}", "config.model"))
@in_one_line
def probe_checkpoints(config: ProbeConfig, folder: Path | None = None) -> CheckpointsOutcome:
    """Probe every layer of every evaluated checkpoint of the config's runs on a labelled dataset.

    The figure and the report become artifacts of the first run in MLflow, the accuracies metrics of each, by step. The
    report is also written into `folder`.
    """
    services = settings.load()
    for name in ("model", "dataset"):
        if not getattr(config, name):
            raise IgptError(f"{name} is empty: give it a value, as in `igpt probe {name}=...`")
    data = snapshot.read(config.dataset, config.snapshot)
    runs = [_address(run) for run in (config.model, *config.beside)]
    evaluated = {run: _evaluated(run) for run in runs}
    ray_job.begin(services.ray_address, "probe")
    reporter, stages = Reporter("probe"), StageMeter()
    scores: list[CheckpointScore] = []
    with stages.measure("probe"), terminable(), ProgressPage() as page:
        for run, losses in evaluated.items():
            for step, loss in losses.items():
                score = _probe(run, step, loss, data, config, together(reporter, page))
                scores.append(score)
                reporter.say(
                    f"{objects.name_of(run)}, step {step:,}: loss {loss:.3f}, layer {score.layer} classifies "
                    f"{score.test_accuracy:.1%}"
                )
    outcome = CheckpointsOutcome(scores=tuple(scores), figure=figures.features_by_loss(scores))
    for run in runs:
        _log(run, scores, services.mlflow_tracking_uri, outcome.figure if run == runs[0] else None)
    artifacts.table("checkpoints", checkpoints_table(outcome.scores), outcome.line)
    reporter.close()
    reporter.say(outcome.line)
    mlflow_run = record.read(runs[0]).mlflow_run
    logger = RunLogger(services.mlflow_tracking_uri, mlflow_run) if mlflow_run else None

    def make() -> Report:
        made_by = origin.of_this_run(
            model=config.model, mlflow_run=mlflow_run or "", mlflow_url="" if logger is None else logger.url
        )
        return assemble.of_checkpoints(config, scores, outcome.line, data, stages.costs, made_by)

    name = f"checkpoints-{deliver.FILE}"
    return replace(outcome, report=deliver.deliver(make, logger=logger, name=name, folder=folder, reporter=reporter))


def _address(run: str) -> str:
    """The URL of a run. Raises IgptError when it is none."""
    if run.startswith("models:"):
        raise IgptError(f"checkpoints is all and the model is {run}: give the folder of a training run")
    url = objects.absolute(run).rstrip("/")
    objects.check_reachable(url)
    record.read(url)
    return url


def _evaluated(run: str) -> dict[int, float]:
    """The validation losses of a run's checkpoints by step. Raises IgptError with fewer than two."""
    losses = {step: loss for step, loss in sorted(checkpoint.losses(run).items()) if loss is not None}
    if len(losses) < 2:
        raise IgptError(
            f"{run}: {len(losses)} of its checkpoints are evaluated, a figure needs two; set keep_every, and "
            "evaluate_every to a divisor of it, in the training"
        )
    return losses


def _probe(
    run: str, step: int, loss: float, data: Snapshot, config: ProbeConfig, progress: Progress
) -> CheckpointScore:
    bundle = checkpoint.load_model(checkpoint.folder_of(run, step))
    layers = probe_layers(bundle, data, config, progress=progress)
    layer = int(np.argmax([score.validation_accuracy for score in layers]))
    return CheckpointScore(
        run=run,
        parameters=bundle.model.config.parameters,
        step=step,
        validation_loss=loss,
        layer=layer,
        test_accuracy=layers[layer].test_accuracy,
    )


def _log(run: str, scores: list[CheckpointScore], tracking_uri: str, figure: bytes | None) -> None:
    """Log to the run of MLflow that a training belongs to, if there is one."""
    if (mlflow_run := record.read(run).mlflow_run) is None:
        return
    logger = RunLogger(tracking_uri, mlflow_run)
    logged = dict(logger.metric_history(METRIC))
    for score in scores:
        if score.run == run and logged.get(score.step) != score.test_accuracy:
            logger.metrics(score.step, {METRIC: score.test_accuracy})
    if figure is not None:
        logger.file(figure, FIGURE)
