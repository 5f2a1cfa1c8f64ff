"""`igpt playground`: a page on loopback to play with models."""

from typing import Annotated

import typer

from flows.cli.options import Home, prepare
from flows.terminal.console import console
from pipeline.errors import IgptError

_MOST_MODELS = 2


def playground(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="models:/NAME@ALIAS, a training run, one of its checkpoints or a model folder; twice: side by side.",
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8600,
    home: Home = None,
) -> None:
    """Play with a model on a page of this machine.

    Bring a picture, watch completions of it grow, draw new ones, and see which pixels surprise the model. The page is
    for this machine's browsers alone. A registered model runs its own code. Ctrl-C ends it.
    """
    prepare(home)
    if len(model) > _MOST_MODELS:
        raise IgptError(f"{len(model)} models are given: the page shows {_MOST_MODELS} side by side at most")
    try:
        from flows.playground import server
    except ModuleNotFoundError as error:
        raise IgptError(
            f"NiceGUI is not installed ({error.name} is missing): pip install 'igpt-pipeline[playground]'"
        ) from None
    from flows.playground.limits import Limits

    console.print(f"Opening {' and '.join(model)}")
    server.serve_until_ended(model, port, Limits(), console.print)


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(playground)
