"""`igpt clean`: remove what nobody needs any more."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.options import ConfigFile, Home, Json, Overrides, prepare
from flows.config.clean import CleanConfig
from flows.services import preflight, settings
from flows.terminal.console import Reporter
from flows.terminal.tables import print_json, print_table, size_text
from pipeline.typed_config import config_file

# Modules that need torch, MLflow or Prefect are imported inside the command, to keep the command line fast.


def clean(
    overrides: Overrides = None,
    config: ConfigFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Remove old checkpoints, features, logs and deleted runs.

    Of checkpoints those of finished runs, and of MLflow what was deleted there. How many days to keep each is a
    field, as in checkpoints=7; `igpt config clean` prints them. What an unfinished run, a registered version or a
    running process uses stays.
    """
    folder = prepare(home, as_json=as_json)
    checked = config_file.load(CleanConfig, config, overrides or [])
    tracking_uri, prefect_url = settings.tracking_uri(), settings.prefect_api_url()
    preflight.check_prefect(prefect_url)
    from flows.clean import about_prefect
    from flows.clean import clean as remove

    reporter = Reporter("clean")
    cleaned = list(
        remove(
            checked,
            tracking_uri=tracking_uri,
            mlflow_database=settings.mlflow_database(folder),
            logs=folder / "logs",
            dry_run=dry_run,
            say=reporter.say,
        )
    )
    removed = [entry for entry in cleaned if not entry.kept_because]
    if as_json:
        print_json([asdict(entry) for entry in cleaned])
    else:
        print_table(
            [
                {
                    "would be removed" if dry_run else "removed": entry.what,
                    "count": entry.count,
                    "size": "-" if entry.bytes is None else size_text(entry.bytes),
                    "where": entry.where,
                }
                for entry in removed
            ]
        )
    for entry in cleaned:
        if entry.kept_because:
            reporter.say(f"{entry.what} of {entry.where} stay: {entry.kept_because}")
    size = size_text(sum(entry.bytes or 0 for entry in removed))
    reporter.say(f"{size} {'would be' if dry_run else 'are'} removed")
    reporter.say(about_prefect())


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(clean)
