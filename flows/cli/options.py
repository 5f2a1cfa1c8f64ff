"""Options, and the preparation of the environment, that several commands share."""

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.services import preflight, settings
from flows.terminal.console import console
from pipeline.errors import IgptError
from pipeline.typed_config import config_file

Home = Annotated[
    Path | None,
    typer.Option(help="Folder of the local services; IGPT_HOME or .igpt by default.", show_default=False),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file; `igpt config KIND` prints one."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIELD=VALUE]...", help="Fields to set: steps=500; in a refresh, pretrain.steps=500."),
]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="URL or path of the dataset.")]
Number = Annotated[
    int | None, typer.Argument(metavar="[SNAPSHOT]", help="Number of a snapshot; the newest by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs; progress goes to standard error.")]


def finite(value: float) -> float:
    """Refuse NaN and infinity, which compare with every limit as if they were within it."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number to compare with; give one such as 24")
    return value


def prepare(home: Path | None, *, as_json: bool = False) -> Path:
    """Configure this process for the services of a folder, and return the folder."""
    folder = settings.home_folder(home)
    settings.activate(folder)
    console.stderr = as_json
    return folder


def read_config(kind: type[Any], path: Path | None, overrides: list[str] | None, home: Path | None) -> Any:
    """Read the config of a flow, and check that Prefect answers, before the slow imports. Raises IgptError."""
    prepare(home)
    config = config_file.load(kind, path, overrides or [])
    preflight.check_prefect(settings.load().prefect_api_url)
    return config


def check_png(output: Path) -> None:
    """Raise IgptError unless a PNG file can be written there."""
    if output.suffix.lower() != ".png":
        raise IgptError(f"{output}: the output is a PNG file; give a name that ends in .png")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise IgptError(f"{output}: the folder {parent} does not exist; create it first")
    if output.is_dir() or not os.access(output if output.exists() else parent, os.W_OK):
        raise IgptError(f"{output}: it cannot be written; give another name")
