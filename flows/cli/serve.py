"""`igpt serve`: answer requests for a registered model over HTTP."""

import signal
import threading
from typing import Annotated

import typer

from flows.cli.options import Home, finite, prepare
from flows.services import settings
from flows.serving.config import ServeConfig
from flows.terminal.console import console
from pipeline.errors import IgptError

_DEFAULT = ServeConfig()


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="NAME@champion, NAME@candidate, NAME/3, or models:/... . An alias is followed."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on, of every node with a replica.")] = _DEFAULT.host,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = _DEFAULT.port,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that each hold the model.")] = _DEFAULT.replicas,
    cpus: Annotated[
        float, typer.Option(min=0.01, callback=finite, help="Cores that a replica holds and computes with.")
    ] = _DEFAULT.cpus,
    batch: Annotated[
        int, typer.Option(min=1, help="Images that a replica computes at a time; 1: each request by itself.")
    ] = _DEFAULT.batch,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that wait for a replica; more are refused with 503 and Retry-After.")
    ] = _DEFAULT.queue,
    every: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Seconds between two looks at where an alias points.")
    ] = 10,
    home: Home = None,
) -> None:
    """Serve a registered model over HTTP.

    It runs with Ray Serve on the Ray cluster of the services. Requests and answers are those of `mlflow models
    serve`. When the alias moves to another version, that one takes over without a lost request. Ctrl-C ends the
    service; one whose command was killed serves on, and the same command takes it over.
    """
    prepare(home)
    config = ServeConfig(host=host, port=port, replicas=replicas, cpus=cpus, batch=batch, queue=queue)
    uri, address = settings.tracking_uri(), settings.addresses().get("Ray")
    if address is None:
        raise IgptError("no Ray cluster is known: start the services with `igpt up`, or set RAY_ADDRESS")
    try:
        from flows.serving import service as serving
    except ModuleNotFoundError as error:
        raise IgptError(
            f"Ray Serve is not installed ({error.name} is missing): pip install 'igpt-pipeline[serve]'"
        ) from None
    from flows import trust
    from igpt_model.tracking import runs

    runs.check_reachable(uri)
    registry = trust.registry(uri)
    name = registry.find(model).name
    serving.connect(address)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    service = serving.Service(name, config, registry, console.print)
    service.start()
    try:
        console.print(f"requests to http://{host}:{port}/invocations, health at http://{host}:{port}/-/healthz")
        console.print(f"metrics at {', '.join(serving.metrics_urls())}")
        serving.follow(service, model, registry, every=every, ended=ended, say=console.print)
    finally:
        service.end()


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(serve)
