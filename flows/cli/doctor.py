"""`igpt doctor`: check this machine and its services, and say what to do about problems."""

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
    """Check this machine and its services, and say what to do. Exits with 1 if a check fails."""
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
        fields = [asdict(verdict) for verdict in verdicts]
        print_json({"version": version.version(), "commit": commit, "verdicts": fields})
    else:
        _print(verdicts, f"{version.DISTRIBUTION} {version.version()}, commit {commit or 'unknown'}")
    if any(verdict.state == "fails" for verdict in verdicts):
        raise typer.Exit(1)


def _stack(home: Path) -> list[ServiceStatus]:
    try:
        return local_stack.status(home)
    except IgptError as error:  # services.json is damaged or belongs to another user
        return [ServiceStatus(name="services", url="", pid=None, answers=False, detail=str(error))]


def _print(verdicts: "list[Verdict]", title: str) -> None:
    console.print(title)
    console.print()
    columns = ("check", "state", "detail")
    print_table([{name: getattr(verdict, name) for name in columns} for verdict in verdicts])
    with_advice = [verdict for verdict in verdicts if verdict.advice]
    console.print()
    console.print("What to do:" if with_advice else "Everything is fine.")
    for verdict in with_advice:
        console.print(f"  {verdict.check} ({verdict.state}): {verdict.advice}")
