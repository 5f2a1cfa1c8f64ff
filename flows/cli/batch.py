"""The commands that send many images through a model, and write a table: features and classify; `igpt score` too."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import ConfigFile, Home, Json, Overrides, prepare
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json
from igpt_model.batch.config import BatchConfig
from pipeline.typed_config import config_file

if TYPE_CHECKING:
    from pathlib import Path

    from igpt_model.batch.work import Task

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="models:/..., a training run, one of its checkpoints or a model folder (path or s3://)."
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A dataset of the model's resolution and palette, or raw images of any size; path or URL.",
    ),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="A new folder or URL, or one where this was interrupted.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(features)
    app.command()(classify)


def features(
    model: Model,
    dataset: Source,
    out: Out,
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Write the features of many images as Parquet.

    Which ones is set by fields, as in layers=[6,12] pooling=rows split=test. Runs on the Ray cluster where one is
    configured, else in this process. A row holds key, uri, split, label and a column for each layer. Every image is
    in one row, or in rejected/ with a reason; manifest.json is written last, and the same command continues what
    was interrupted.
    """
    run("features", model, dataset, out, overrides, config, as_json=as_json, home=home)


def classify(
    model: Model,
    dataset: Source,
    out: Out,
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Write the classes of many images as Parquet.

    It needs a registered model with a probe, and otherwise works as `igpt features`. A row holds key, uri, split,
    label, predicted, probability and probabilities, in the order of manifest.json.
    """
    run("classify", model, dataset, out, overrides, config, as_json=as_json, home=home)


def run(
    task: "Task",
    model: str,
    dataset: str,
    out: str,
    overrides: list[str] | None,
    config: "Path | None",
    *,
    as_json: bool,
    home: "Path | None",
) -> None:
    """Run a batch and print what is there."""
    prepare(home, as_json=as_json)
    checked = config_file.load(BatchConfig, config, overrides or [])
    from flows.batch import batch

    reporter = Reporter(task)
    done = batch(task, model, dataset, out, checked, progress=reporter, say=reporter.say)
    reporter.close()
    if as_json:
        print_json(asdict(done))
        return
    before = done.parts - done.parts_computed
    console.print(
        f"{done.out}: {done.images:,} images in {done.parts:,} part{'s' if done.parts > 1 else ''}"
        f"{f', {before:,} of them from before' if before else ''}"
    )
    for reason, count in done.rejected.items():
        console.print(f"  {count:,} rejected: {reason}")
