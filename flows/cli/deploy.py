"""`igpt deploy`: registers the scheduled work with a Prefect server."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Home, prepare
from flows.services import preflight, settings
from flows.terminal.console import console


def deploy(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Deployments; all without.")] = None,
    file: Annotated[Path, typer.Option(help="What to deploy, in the format of prefect.yaml.")] = Path(
        "infra/prefect.yaml"
    ),
    notify: Annotated[
        str | None, typer.Option(metavar="TYPE/NAME", help="Prefect's notification block that hears of failed runs.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the file alone; register nothing.")] = False,
    home: Home = None,
) -> None:
    """Register deployments, their work pool and automations; doing it again brings them up to date."""
    prepare(home)
    if not check:
        preflight.check_prefect(settings.prefect_api_url())
    from flows.prefect_ops import deployments

    found = deployments.read(file, names or [])
    if check:
        for each in found:
            console.print(f"{each.full_name} can be deployed", markup=False)
        return

    def say(line: str) -> None:
        console.print(f"  {line}", markup=False)

    deployments.register(found, say)
    deployments.register_automations(notify, say)
    pools = {each.entry.work_pool.name for each in found}
    for pool in sorted(pools):
        console.print(f"a worker runs them: prefect worker start --pool {pool} --type process --limit 1", markup=False)


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(deploy)
