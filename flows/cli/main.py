"""The command line `igpt`: parses arguments, prepares the environment and calls a flow, which does the work."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from flows import version
from flows.cli import (
    backup,
    batch,
    clean,
    datasets,
    deploy,
    doctor,
    evaluate,
    failures,
    models,
    monitor,
    playground,
    registry,
    runs,
    serve,
    worker,
)
from flows.cli.options import ConfigFile, Home, Overrides, check_png, prepare, read_config
from flows.cli.sections import InSections
from flows.config.demo import demo_config
from flows.config.describe import KINDS, describe
from flows.config.refresh import RefreshConfig
from flows.services import local_stack, settings
from flows.terminal import streams
from flows.terminal.console import OutputClosedError, OutputError, console, write
from flows.terminal.tables import print_table
from igpt_model.config import PretrainConfig
from igpt_model.probing.config import ProbeConfig
from pipeline.errors import IgptError
from pipeline.printable import printable
from pipeline.store import objects

app = typer.Typer(
    cls=InSections,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(datasets.app, name="dataset")
app.add_typer(registry.app, name="models")
app.add_typer(runs.app, name="runs")
app.add_typer(backup.app, name="backup")

_LONGEST_NAME = 80  # of a folder for a report
_INTERRUPTED = 130  # 128 plus the number of SIGINT, as in shells
_OUTPUT_CLOSED = 141  # 128 plus the number of SIGPIPE


def _print_version(wanted: bool) -> None:
    if wanted:
        commit = version.commit(settings.git_commit()) or "unknown"
        console.print(f"{version.DISTRIBUTION} {version.version()}, commit {commit}")
        raise typer.Exit


@app.callback()
def options(
    print_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and commit.")
    ] = False,
) -> None:
    """Image GPT as a pipeline: raw images to a registered, probed model."""


@app.command()
def demo(
    overrides: Overrides = None,
    raw: Annotated[
        str | None, typer.Option(help="Your images: a folder or a tar file, as a path or s3:// URL.")
    ] = None,
    home: Home = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the services afterwards.")] = False,
) -> None:
    """Run the whole pipeline on digits, or on the images of --raw.

    It starts the services that it needs.
    """
    folder = prepare(home)
    config = demo_config(raw, overrides or [])
    console.print("Starting S3, Prefect, MLflow and Ray on loopback")
    stack = local_stack.up(folder, say=_say)
    settings.use(stack)
    try:
        from flows.demo import demo as flow

        console.print(
            f"Running the pipeline; watch it at {stack.prefect_url} (Prefect) and {stack.mlflow_url} (MLflow)"
        )
        name = objects.name_of(config.dataset.dataset)
        flow(config, local_stack.process_ids(folder), folder / "demo" / name)
    finally:
        if stop:
            local_stack.down(folder, say=_say)
    if not stop:
        console.print()
        console.print(f"The services keep running: Prefect {stack.prefect_url}, MLflow {stack.mlflow_url}")
        console.print("`igpt status` checks them, `igpt down` ends them.")


@app.command()
def up(home: Home = None) -> None:
    """Start S3, Prefect, MLflow and Ray on loopback.

    Prints their addresses, and the variables by which other programs find them.
    """
    folder = prepare(home)
    stack = local_stack.up(folder, say=_say)
    for name, url in (("S3", stack.s3_url), ("Prefect", stack.prefect_url), ("MLflow", stack.mlflow_url)):
        console.print(f"{name:8} {url}")
    console.print(f"{'Ray':8} {stack.ray_address}")
    console.print()
    console.print("Commands run from this folder find them. For other shells and programs:")
    for name, value in stack.environment().items():
        console.print(f"export {name}={value}")


@app.command()
def status(home: Home = None) -> None:
    """Show which services answer; exits with 1 unless all do."""
    services = local_stack.status(prepare(home))
    for service in services:
        state = "answers" if service.answers else "does not answer"
        console.print(f"{service.name:8} {state:16} {service.url}  {service.detail}".rstrip())
    if not services:
        console.print("No services were started here; `igpt up` starts them.")
    if not services or not all(service.answers for service in services):
        raise typer.Exit(1)


@app.command()
def down(home: Home = None) -> None:
    """End the services of `igpt up` or `igpt demo`; their data stay."""
    local_stack.down(prepare(home), say=_say)


@app.command()
def pretrain(config: ConfigFile = None, overrides: Overrides = None, home: Home = None) -> None:
    """Train an Image GPT, or go on with an unfinished training."""
    checked = read_config(PretrainConfig, config, overrides, home)
    from flows.pretrain import pretrain as flow

    outcome = flow(checked)
    console.print(f"run {outcome.run}")
    console.print(f"MLflow {outcome.mlflow_url}")


@app.command()
def probe(
    config: ConfigFile = None,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write with checkpoints=all.")] = Path(
        "features_by_loss.png"
    ),
    home: Home = None,
) -> None:
    """Evaluate a model's features with classifiers.

    A linear probe on every layer, and at the best layer what the config asks for.
    """
    checked = read_config(ProbeConfig, config, overrides, home)
    if checked.checkpoints == "all":
        _probe_checkpoints(checked, output, _report_folder(home, checked.model))
        return
    from flows.probe import probe as flow
    from flows.probe_report import layers_table, table

    outcome = flow(checked, folder=_report_folder(home, checked.model))
    print_table(layers_table(outcome.result))
    console.print()
    print_table(table(outcome.result, outcome.classes))
    if outcome.report is not None:
        console.print(f"report {outcome.report}")


def _probe_checkpoints(config: ProbeConfig, output: Path, folder: Path) -> None:
    check_png(output)
    from flows.probe_checkpoints import probe_checkpoints
    from flows.probe_report import checkpoints_table

    outcome = probe_checkpoints(config, folder=folder)
    print_table(checkpoints_table(outcome.scores))
    objects.write_bytes(str(output.absolute()), outcome.figure)
    console.print(f"the figure is {output}")
    if outcome.report is not None:
        console.print(f"report {outcome.report}")


@app.command()
def refresh(config: ConfigFile = None, overrides: Overrides = None, home: Home = None) -> None:
    """Build, pretrain, probe and register, as the scheduled refresh."""
    checked = read_config(RefreshConfig, config, overrides, home)
    from flows.refresh import refresh as flow

    outcome = flow(checked, folder=_report_folder(home, checked.pretrain.tracking.model_name))
    console.print(f"registered {outcome.model_uri}")
    if outcome.report is not None:
        console.print(f"report {outcome.report}")


@app.command("config")
def print_config(
    kind: Annotated[
        str, typer.Argument(help="refresh, dataset, pretrain, probe, evaluate, batch, promotion, backup or clean.")
    ] = "refresh",
) -> None:
    """Print a config file: every field, described, with its default."""
    if kind not in KINDS:
        raise IgptError(f"{kind!r} has no config: choose one of {', '.join(KINDS)}")
    write(sys.stdout, describe(KINDS[kind]))


models.register(app)
evaluate.register(app)
batch.register(app)
deploy.register(app)
worker.register(app)
monitor.register(app)
serve.register(app)
playground.register(app)
clean.register(app)
doctor.register(app)


def _report_folder(home: Path | None, model: str) -> Path:
    """Where the report on a model is written; the next one takes its place."""
    name = re.sub(r"[^\w.-]+", "-", model.removeprefix("models:/"))[-_LONGEST_NAME:].strip("-.")
    return settings.home_folder(home) / "reports" / (name or "model")


def _say(line: str) -> None:
    console.print(f"  {line}")


def main() -> None:
    """Run the command line.

    Exits with 1 on a bug, 2 on bad input, 130 on Ctrl-C and 141 when nobody reads the output any more.
    """
    streams.prepare()
    try:
        line, code = "", app(standalone_mode=False)
    except OutputClosedError:
        line, code = "", _OUTPUT_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        line, code = "", _INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the one place that catches what nobody foresaw)
        if isinstance(error, TyperException) and failures.is_help(error):
            line, code = "", error.exit_code
            error.show()  # type: ignore[attr-defined]  # every subclass has it
        else:
            line, code = failures.describe(error, settings.default_home())
    if code == _INTERRUPTED:  # Typer returns this code for a Ctrl-C that it has caught
        line = "interrupted; finished work is kept, and the same command continues it"
    if line:
        _print_error(line)
    streams.abandon()
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(line: str) -> None:
    # Below the line that is updated in place, if there is one.
    below = os.linesep if sys.stdout is not None and sys.stdout.isatty() else ""
    with suppress(OutputError):
        write(sys.stderr, f"{below}igpt: {printable(line)}\n")


if __name__ == "__main__":
    main()
