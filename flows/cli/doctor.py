"""`igpt doctor`: what of this machine and its services will not do, and what to do about it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flows import version
from flows.cli.options import Home, Json, prepare
from flows.services import local_stack, settings
from flows.services.local_stack import ServiceStatus
from flows.terminal.console import console
from flows.terminal.tables import print_json, print_table
from pipeline.errors import IgptError

if TYPE_CHECKING:
    from flows.doctor.verdicts import Verdict


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)


def doctor(home: Home = None, as_json: Json = False) -> None:
    """Tell what of this machine will not do, and what to do about it; exits with 1 if anything fails."""
    folder = prepare(home, as_json=as_json)
    from flows.doctor import addresses, machine
    from flows.doctor.verdicts import judge

    with ThreadPoolExecutor(3) as threads:
        facts = threads.submit(machine.examine, folder)
        answers = threads.submit(addresses.ask_all)
        stack = threads.submit(_stack, folder)
        verdicts = judge(facts.result(), stack.result(), answers.result())
    commit = version.commit(settings.git_commit())
    if as_json:
        told = [asdict(verdict) for verdict in verdicts]
        print_json({"version": version.version(), "commit": commit, "verdicts": told})
    else:
        _print(verdicts, f"{version.DISTRIBUTION} {version.version()}, commit {commit or 'unknown'}")
    if any(verdict.state == "fails" for verdict in verdicts):
        raise typer.Exit(1)


def _stack(home: Path) -> list[ServiceStatus]:
    try:
        return local_stack.status(home)
    except IgptError as error:  # the record is damaged or another user's
        return [ServiceStatus(name="services", url="", pid=None, answers=False, detail=str(error))]


def _print(verdicts: "list[Verdict]", title: str) -> None:
    console.print(f"{title}\n")
    print_table([{"check": one.check, "state": one.state, "detail": one.detail} for one in verdicts])
    advised = [verdict for verdict in verdicts if verdict.advice]
    console.print(f"\n{'What to do:' if advised else 'Everything will do.'}")
    for verdict in advised:
        console.print(f"  {verdict.check} ({verdict.state}): {verdict.advice}", markup=False)
