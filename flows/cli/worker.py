"""`igpt worker`: run the deployed flows of a work pool on this machine."""

import signal
import threading
from typing import Annotated

import typer

from flows.cli.options import Home
from flows.services import settings
from flows.terminal.console import console
from pipeline.errors import IgptError


def worker(
    pool: Annotated[str, typer.Argument(help="Work pool of the deployments, as in prefect.yaml.")],
    limit: Annotated[int, typer.Option(min=1, help="Flow runs that may work at once.")] = 1,
    address: Annotated[str, typer.Option(help="Address of the page /health.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page /health.")] = 8080,
    home: Home = None,
) -> None:
    """Take the flow runs of a work pool and run them.

    Each runs in a process of its own, which outlives the Prefect server.
    """
    settings.activate(settings.home_folder(home), quiet=False)
    settings.prefect_api_url()
    from flows.prefect_ops.polling import Keeper, served_health  # not for the other commands

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    keeper = Keeper(pool=pool, limit=limit, say=console.print)
    try:
        with served_health(keeper, address, port):
            console.print(f"working for pool {pool}; Ctrl-C ends it and its flow runs")
            keeper.keep(ended)
    except OSError as error:
        raise IgptError(f"{address}:{port}: {error.strerror or error}; choose another --address or --port") from None


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(worker)
