"""`igpt metrics`: serve Prometheus what outlives flow runs."""

import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Home, prepare
from flows.services import settings
from flows.terminal.console import console

if TYPE_CHECKING:
    from flows.monitor.exporter import Exporter

# Modules that need Prefect or MLflow are imported inside the command, to keep the command line fast.


def metrics(
    file: Annotated[Path, typer.Option(help="File of the deployments to watch, as given to `igpt deploy`.")] = Path(
        "infra/prefect.yaml"
    ),
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8091,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two reads of a source.")] = 60,
    home: Home = None,
) -> None:
    """Serve Prometheus the state of datasets, models and runs.

    It is taken from the store, MLflow and Prefect.
    """
    prepare(home)
    from flows.monitor import runs
    from flows.monitor.exporter import Exporter, Read
    from flows.monitor.models import ModelReader
    from flows.monitor.store import StoreReader
    from flows.monitor.watched import watched
    from flows.prefect_ops import deployment_runs, deployments

    tracking_uri, _ = settings.tracking_uri(), settings.prefect_api_url()
    deployables = deployments.read(file)
    names = [deployable.entry.name for deployable in deployables]
    subjects = watched(names, [deployable.config for deployable in deployables])
    sources: dict[str, Read] = {
        "store": StoreReader(subjects.datasets, subjects.leases),
        "mlflow": ModelReader(tracking_uri, subjects.models),
        "prefect": lambda: runs.samples(
            subjects.deployments, deployment_runs.recent(subjects.deployments), datetime.now(UTC)
        ),
    }
    serve_until_ended(Exporter(sources, console.print, every), address, port)


def serve_until_ended(exporter: "Exporter", address: str, port: int) -> None:
    """Answer Prometheus until SIGTERM or Ctrl-C."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with exporter.serving(address, port):
        console.print(f"metrics at http://{address}:{port}/metrics")
        ended.wait()


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(metrics)
