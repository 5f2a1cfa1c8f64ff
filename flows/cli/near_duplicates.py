"""`igpt dataset duplicates`: held-out images that look like one of another split, reported or dropped."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.options import Dataset, Home, Json, Number, prepare
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json
from flows.version import version
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import SPLITS
from pipeline.errors import IgptError

app = typer.Typer(rich_markup_mode=None)

_NAMED = 20


@app.command("duplicates")
def duplicates(
    dataset: Dataset,
    number: Number = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Publish a snapshot without the held-out ones; they go into quarantine.")
    ] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Find held-out images that look like one of another split, by a hash of their tokens."""
    prepare(home, as_json=as_json)
    from pipeline.dataset.lifecycle.drop_images import drop_images
    from pipeline.dataset.record import Publisher
    from pipeline.inspect.near_duplicates import find_near_duplicates

    chosen = snapshot.read(dataset, number)
    newest = snapshot.read(dataset)
    if drop and chosen.number != newest.number:
        raise IgptError(f"--drop takes the newest snapshot, {newest.number}, and {number} is given; leave it out")
    reporter = Reporter("dataset")
    pairs = find_near_duplicates(chosen, progress=reporter)
    reporter.close()
    new = None
    if drop and pairs:
        details = {pair.key: f"looks like {pair.other_split} image {pair.other_key}" for pair in pairs}
        new = drop_images(chosen.dataset, details, "near_duplicate", Publisher(program=f"igpt {version()}"))
    if as_json:
        fields = {"snapshot": chosen.number, "published": None if new is None else new.number}
        print_json({**fields, "near_duplicates": [asdict(pair) for pair in pairs]})
        return
    held_out = sum(chosen.images(split) for split in SPLITS if split != "train")
    console.print(f"{len(pairs):,} of {held_out:,} held-out images look like one of another split")
    for pair in pairs[:_NAMED]:
        console.print(f"{pair.split} {pair.uri} looks like {pair.other_split} {pair.other_uri}")
    if len(pairs) > _NAMED:
        console.print(f"and {len(pairs) - _NAMED:,} more; --json names all")
    if new is not None:
        counts = ", ".join(f"{split} {new.images(split):,}" for split in SPLITS)
        console.print(f"snapshot {new.number} is published without them: {counts}")
