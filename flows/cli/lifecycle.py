"""`igpt dataset expire`, `compact`, `erase`: what happens to a dataset over years, beside its builds."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import Dataset, Home, Json, finite, prepare
from flows.services import settings
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json, size_text
from flows.version import version
from pipeline.dataset import snapshot
from pipeline.errors import IgptError

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
    from pipeline.dataset.record import Publisher

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


@app.command("erase")
def erase_images(
    dataset: Dataset,
    key: Annotated[list[str] | None, typer.Option(help="Key of an image, as `igpt dataset images` prints it.")] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="Address of an image, or of a container for all images in it.")
    ] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="A file with a key or an address a line.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="All images with this value of a kept column.")
    ] = None,
    keep_copies: Annotated[
        bool, typer.Option("--keep-copies", help="Leave images with the same bytes under other names.")
    ] = False,
    runs: Runs = ["s3://runs"],  # noqa: B006 (Typer copies it)
    features: Annotated[
        list[str] | None, typer.Option(help="Feature caches besides DATASET-features; give it once for each.")
    ] = None,
    reports: Annotated[
        list[Path] | None, typer.Option(help="Folders with reports besides that of the local services.")
    ] = None,
    without_mlflow: Annotated[
        bool, typer.Option("--without-mlflow", help="There is no MLflow; the receipt says that it was not searched.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Erase images from every snapshot, and from features, pictures, reports and caches made of them.

    Later builds keep them out while the raw images are there. Without a selection, it ends an erasure that was begun.
    """
    folder = prepare(home, as_json=as_json)
    from flows.services import cluster
    from pipeline.dataset.lifecycle.erase import Selection, find

    keys, addresses = _named(key or [], url or [], list_file)
    columns = dict(_pair(text) for text in where or [])
    selection = Selection(keys=keys, addresses=addresses, columns=columns, copies=not keep_copies)
    if dry_run:
        found = find(dataset, selection)
        if as_json:
            fields = {name: getattr(found, name) for name in ("images", "copies", "not_found", "by_snapshot")}
            print_json(fields)
            return
        for number, count in found.by_snapshot.items():
            console.print(f"snapshot {number}: {count:,} images would be erased")
        console.print(
            f"{found.images:,} images would be erased, {found.copies:,} of them copies under other names; "
            f"{found.not_found:,} of the given keys and addresses name no image"
        )
        return
    from flows.erase import Places, erase_everywhere
    from igpt_model.tracking import runs as tracking
    from pipeline.dataset.record import Publisher

    uri = None if without_mlflow else settings.tracking_uri()
    if uri is not None:
        tracking.check_reachable(uri)
    places = Places(
        runs=runs, features=features or [], reports=[*report_folders(folder), *(reports or [])], tracking_uri=uri
    )
    cluster.connect(settings.load().ray_address, "build")
    reporter = Reporter("dataset")
    publisher = Publisher(program=f"igpt {version()}")
    receipts = erase_everywhere(dataset, selection, places, publisher, progress=reporter)
    reporter.close()
    if as_json:
        print_json(receipts)
        return
    for receipt in receipts:
        _tell(receipt)


def report_folders(home: Path) -> list[Path]:
    """The folders in which commands leave reports."""
    return [home / "reports", home / "demo"]


def _named(keys: list[str], addresses: list[str], file: Path | None) -> tuple[frozenset[str], frozenset[str]]:
    from pipeline.dataset.shards import KEY_LENGTH

    lines = []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise IgptError(
                f"{file}: cannot be read ({error}); give a text file with a key or an address a line"
            ) from None
    for key in keys:
        if not _is_key(key):
            raise IgptError(f"{key!r} is no key: it has {KEY_LENGTH} hex digits, as `igpt dataset images` prints it")
    of_lines = {line for line in lines if _is_key(line)}
    return frozenset([*keys, *of_lines]), frozenset([*addresses, *(line for line in lines if line not in of_lines)])


def _is_key(text: str) -> bool:
    from pipeline.dataset.shards import KEY_LENGTH

    return len(text) == KEY_LENGTH and all(character in "0123456789abcdef" for character in text)


def _pair(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise IgptError(f"--where is {text!r}: give COLUMN=VALUE, such as owner=ann")
    return column, value


def _tell(receipt: dict[str, Any]) -> None:
    outside = receipt["outside"]
    console.print(
        f"{receipt['images']:,} images are erased from {len(receipt['snapshots'])} snapshots; "
        f"{receipt.get('not_found', 0):,} of the given keys and addresses named none"
    )
    for changed in receipt["snapshots"]:
        console.print(
            f"snapshot {changed['number']}: {changed['images']:,} images, {changed['rejected']:,} in quarantine; "
            f"content {changed['old_digests'][0][:12]} is {changed['content_digest'][:12]} now"
        )
    pictures = outside["mlflow"] if isinstance(outside["mlflow"], str) else f"{len(outside['mlflow'])} removed"
    console.print(
        f"{receipt['files_removed']:,} files of the dataset and {outside['features']:,} of features are removed; "
        f"pictures in MLflow: {pictures}; reports and their pictures: {len(outside['reports'])}; "
        f"shards in caches of nodes: {sum(outside['node_caches'].values())}"
    )
    for training in outside["trained_on"]:
        console.print(f"{training['name']} was trained on erased images (snapshot {training['snapshot']})")
    for place in receipt["out_of_reach"]:
        console.print(f"out of reach: {place}")
    console.print(f"the receipt is {receipt['dataset']}/erasures/{receipt['number']:06d}.json")
