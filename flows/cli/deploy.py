"""`igpt deploy`: register the scheduled flows with a Prefect server."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Home, prepare
from flows.services import preflight, settings
from flows.terminal.console import console


def deploy(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Deployments; all by default.")] = None,
    file: Annotated[Path, typer.Option(help="File of deployments, in the format of prefect.yaml.")] = Path(
        "infra/prefect.yaml"
    ),
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE/NAME",
            help="Prefect notification block that announces failed runs; by default those named igpt.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the file; register nothing.")] = False,
    home: Home = None,
) -> None:
    """Register or update deployments and their schedules.

    Also their work pools and automations.
    """
    prepare(home)
    if not check:
        preflight.check_prefect(settings.prefect_api_url())
    from flows.prefect_ops import deployments

    deployables = deployments.read(file, names or [])
    if check:
        for deployable in deployables:
            console.print(f"{deployable.full_name} can be deployed")
        return

    def say(line: str) -> None:
        console.print(f"  {line}")

    deployments.register(deployables, say)
    deployments.register_automations(notify, say)
    pools = {deployable.entry.work_pool.name for deployable in deployables}
    for pool in sorted(pools):
        console.print(f"start a worker to run them: igpt worker {pool}")


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(deploy)
