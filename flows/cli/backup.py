"""The commands of `igpt backup`: save, list and restore backups, and tell Prometheus of them."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.monitor import serve_until_ended
from flows.cli.options import ConfigFile, Home, Json, Overrides, prepare
from flows.config.backup import BackupConfig
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json, print_table, size_text
from flows.version import DISTRIBUTION, version
from pipeline.store import objects
from pipeline.typed_config import config_file

if TYPE_CHECKING:
    from flows.backup.archive import Backup

# Modules that need torch are imported inside the commands, to keep the command line fast.

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Back up databases, datasets and models; restore them.",
)

Backups = Annotated[str, typer.Argument(metavar="BACKUPS", help="URL or path of the folder of backups.")]
_NAMED = 20  # missing objects that are named in text; --json names all


@app.command("save")
def save(
    backups: Backups,
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Save databases, datasets, unfinished runs and models; only files that are new are copied.

    Its fields can be set here, as in keep=30; `igpt config backup` prints them. Exits with 1 when the backup is whole,
    and something that it refers to was missing before.
    """
    prepare(home, as_json=as_json)
    checked = config_file.load(BackupConfig, config, overrides or [])
    from flows.backup.save import save as save_backup

    reporter = Reporter("backup")
    saved = save_backup(checked, backups, f"{DISTRIBUTION} {version()}", reporter)
    reporter.close()
    backup = saved.backup
    if as_json:
        counts = {"copied": saved.copied, "copied_bytes": saved.copied_bytes, "removed_backups": saved.pruned.backups}
        print_json({"backup": backup.name, **_row(backup), **counts, "missing": backup.missing})
    else:
        for url in backup.missing[:_NAMED]:
            console.print(f"missing: {url}")
        if len(backup.missing) > _NAMED:
            console.print(f"missing: {len(backup.missing) - _NAMED:,} more; --json names all")
        console.print(
            f"backup {backup.name} is whole: {len(backup.databases)} databases, {len(backup.files):,} files, "
            f"{size_text(backup.bytes)}, of which {saved.copied:,} files, {size_text(saved.copied_bytes)}, are new "
            f"({backup.seconds:.0f} s)"
        )
        for name in saved.pruned.backups:
            console.print(f"backup {name} is removed")
    if backup.missing:
        raise typer.Exit(1)


@app.command("ls")
def list_backups(backups: Backups, as_json: Json = False, home: Home = None) -> None:
    """List the whole backups of a folder, the oldest first."""
    prepare(home, as_json=as_json)
    from flows.backup import archive

    url = objects.absolute(backups)
    objects.check_reachable(url)
    whole = [archive.read(url, name) for name in archive.names(url)]
    if as_json:
        print_json([{"backup": backup.name, **_row(backup)} for backup in whole])
        return
    print_table([{"backup": backup.name, **_row(backup), "size": size_text(backup.bytes)} for backup in whole])
    if not whole:
        console.print(f"no whole backup in {url}")


@app.command("metrics")
def metrics(
    backups: Backups,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8092,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks at the folder.")] = 60,
    home: Home = None,
) -> None:
    """Serve Prometheus the time of the newest whole backup, for an alert when none is made."""
    prepare(home)
    from flows.backup.metrics import samples
    from flows.monitor.exporter import Exporter

    url = objects.absolute(backups)
    serve_until_ended(Exporter({"backups": lambda: samples(url)}, console.print, every), address, port)


def _row(backup: "Backup") -> dict[str, object]:
    return {
        "databases": ", ".join(backup.databases),
        "files": len(backup.files),
        "missing": len(backup.missing),
        "size": backup.bytes,
        "made by": backup.program,
    }


@app.command("restore")
def restore(
    backups: Backups,
    name: Annotated[str | None, typer.Option(help="Name of the backup; the newest by default.")] = None,
    home: Home = None,
) -> None:
    """Restore a backup into empty buckets and databases, verifying every file. An interrupted one can be run again."""
    prepare(home)
    from flows.backup.restore import restore as restore_backup

    reporter = Reporter("restore")
    restored = restore_backup(backups, name, reporter)
    reporter.close()
    backup = restored.backup
    for url in backup.missing[:_NAMED]:
        console.print(f"missing when it was saved: {url}")
    console.print(
        f"backup {backup.name} is restored: {len(backup.databases)} databases, {len(backup.files):,} files, "
        f"{size_text(backup.bytes)} ({restored.seconds:.0f} s)"
    )
    console.print("start MLflow and Prefect; `igpt dataset verify` and `igpt models ls` show what is there")
