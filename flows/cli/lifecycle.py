"""`igpt dataset expire`, `compact`: what happens to a dataset over years, beside its builds."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.options import Dataset, Home, Json, finite, prepare
from flows.services import settings
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json, size_text
from flows.version import version
from pipeline.dataset import snapshot
from pipeline.dataset.record import Publisher

app = typer.Typer(rich_markup_mode=None)

Runs = Annotated[list[str], typer.Option(help="Buckets or folders of training runs to ask which snapshot they saw.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would happen, and change nothing.")]


def _finite_or_none(value: float | None) -> float | None:
    return None if value is None else finite(value)


@app.command("expire")
def expire_snapshots(
    dataset: Dataset,
    keep: Annotated[int | None, typer.Option(help="Keep so many of the newest snapshots.", min=1)] = None,
    days: Annotated[
        float | None, typer.Option(help="Keep those published in so many days.", min=0.0, callback=_finite_or_none)
    ] = None,
    runs: Runs = ["s3://runs"],  # noqa: B006 (Typer copies it)
    even_used: Annotated[
        bool, typer.Option("--even-used", help="Remove also snapshots that a run or a registered model was trained on.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Remove old snapshots; those with a tag, the newest, and what a model was trained on stay. Then gc frees files."""
    prepare(home, as_json=as_json)
    from pipeline.dataset.lifecycle.expire import expire

    used = {} if even_used else _used(dataset, runs)
    result = expire(dataset, keep=keep, days=days, used=used, dry_run=dry_run)
    if as_json:
        print_json(asdict(result))
        return
    would = "would be" if dry_run else "are"
    for one in result.expired:
        console.print(f"snapshot {one.number} {would} removed")
    for kept in result.kept:
        console.print(f"snapshot {kept.number} stays: {kept.because}")
    console.print(
        f"{len(result.expired)} snapshots {would} removed, {result.snapshots} stay; `igpt dataset gc` then frees "
        f"{size_text(result.bytes)} of shards"
    )


def _used(dataset: str, runs: list[str]) -> dict[int, str]:
    from igpt_model.registry.client import Registry
    from igpt_model.tracking import runs as tracking
    from igpt_model.tracking import trained_on

    uri = settings.tracking_uri()
    tracking.check_reachable(uri)
    snapshots = [snapshot.read(dataset, number) for number in snapshot.numbers(snapshot.read(dataset).dataset)]
    return dict(trained_on.by_snapshot(trained_on.find(dataset, runs, Registry(uri)), snapshots))


@app.command("compact")
def compact_shards(dataset: Dataset, dry_run: DryRun = False, as_json: Json = False, home: Home = None) -> None:
    """Publish a snapshot whose small shards are joined into full ones: the same images and tokens in fewer files."""
    prepare(home, as_json=as_json)
    from flows.services import cluster
    from pipeline.dataset.lifecycle.compact import compact

    reporter = Reporter("dataset")
    if not dry_run:
        cluster.connect(settings.load().ray_address, "build")
    result = compact(dataset, Publisher(program=f"igpt {version()}"), dry_run=dry_run, progress=reporter)
    reporter.close()
    if as_json:
        counts = {name: getattr(result, name) for name in ("joined", "made", "images", "bytes")}
        print_json({"snapshot": result.snapshot.number, "content_digest": result.snapshot.content_digest, **counts})
        return
    if result.nothing_to_do:
        console.print(f"nothing to do: no small shards of snapshot {result.snapshot.number} fit into one")
        return
    would = "would be" if dry_run else "are"
    console.print(
        f"{result.joined} small shards with {result.images:,} images {would} joined into {result.made} "
        f"({size_text(result.bytes)})"
    )
    if not dry_run:
        console.print(f"snapshot {result.snapshot.number} is published")
