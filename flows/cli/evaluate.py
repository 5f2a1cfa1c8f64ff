"""The command `igpt evaluate`: the loss of a model on a split of a dataset."""

import math
from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.options import ConfigFile, Home, Json, Overrides, prepare
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json, print_table
from igpt_model.evaluating.config import EvaluateConfig
from pipeline.typed_config import config_file


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A training run, one of its checkpoints or a model folder (path or s3://), or models:/... .",
        ),
    ],
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Evaluate a model on a split: dataset=URL split=test. Prints nats and bits per pixel, and baselines.

    Runs on the Ray cluster where one is configured, else in this process. A result is kept, so that the next
    evaluation of the model on these images, or the promotion gate, finds it. The dataset must have the model's
    resolution and palette: losses per pixel of others do not compare.
    """
    prepare(home, as_json=as_json)
    checked = config_file.load(EvaluateConfig, config, overrides or [])
    from flows.evaluate import choose_executor
    from flows.evaluate import evaluate as evaluate_model

    reporter = Reporter("evaluate")
    result = evaluate_model(model, checked, choose_executor(reporter.say), reporter)
    reporter.close()
    loss, data = result.loss, result.snapshot
    if as_json:
        print_json(
            {
                "model": result.model,
                "dataset": data.dataset,
                "snapshot": data.number,
                "content_digest": data.content_digest,
                "split": result.split,
                **asdict(loss),
                "bits_per_pixel": loss.bits_per_pixel,
                "baselines_nats_per_pixel": asdict(result.baselines),
            }
        )
        return
    levels = result.baselines
    rows = {
        result.model: loss.nats_per_pixel,
        "per-position unigram": levels.position_unigram,
        "unigram": levels.unigram,
        "uniform": levels.uniform,
    }
    print_table(
        [
            {"model": name, "nats per pixel": f"{nats:.4f}", "bits per pixel": f"{nats / math.log(2):.4f}"}
            for name, nats in rows.items()
        ]
    )
    masked = ", over masked pixels" if loss.objective == "masked" else ""
    console.print(f"{loss.images:,} images, {result.split} split of {data.dataset}, snapshot {data.number}{masked}")
