"""The commands of `igpt dataset` that list what is in a snapshot: urls, images, rejected and classes."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import Dataset, Home, Json, Number, prepare
from flows.terminal.console import console, write
from flows.terminal.tables import as_json_types, print_json, print_table
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import SPLITS
from pipeline.errors import IgptError

if TYPE_CHECKING:
    import pyarrow as pa

# pyarrow is imported in the functions, to keep the command line fast.

app = typer.Typer(rich_markup_mode=None)

Split = Annotated[str | None, typer.Option(help="train, validation or test; all by default.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Parquet = Annotated[Path | None, typer.Option("--parquet", metavar="FILE", help="Write a Parquet file.")]


def _split(split: str | None) -> str | None:
    if split not in (None, *SPLITS):
        raise IgptError(f"split is {split!r}: it must be one of {', '.join(SPLITS)}")
    return split


@app.command("urls")
def urls(
    dataset: Dataset,
    number: Number = None,
    split: Split = None,
    braces: Annotated[bool, typer.Option("--braces", help="Print one line for webdataset: shards/{a,b}.tar.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Print the addresses of a snapshot's shards; shards/ has those of older snapshots too."""
    prepare(home, as_json=as_json)
    from pipeline.inspect import tables

    addresses = tables.shard_urls(snapshot.read(dataset, number), _split(split))
    if as_json:
        print_json(addresses)
        return
    for line in [tables.in_braces(addresses)] if braces else addresses:
        console.print(line)


@app.command("images")
def images(
    dataset: Dataset,
    number: Number = None,
    split: Split = None,
    as_json: Json = False,
    as_csv: Csv = False,
    parquet: Parquet = None,
    home: Home = None,
) -> None:
    """List the images in a snapshot's shards, with their classes and the columns of the index."""
    prepare(home, as_json=as_json)
    from pipeline.inspect import tables

    listed = tables.images(snapshot.read(dataset, number), _split(split))
    _show(listed, lambda row: f"{row['split']} {row['class'] or '-'} {row['uri']}", as_json, as_csv, parquet)


@app.command("rejected")
def rejected(
    dataset: Dataset,
    number: Number = None,
    split: Split = None,
    as_json: Json = False,
    as_csv: Csv = False,
    parquet: Parquet = None,
    home: Home = None,
) -> None:
    """List the images that a snapshot rejected, with the reason; quarantine/ has those of older snapshots too."""
    prepare(home, as_json=as_json)
    from pipeline.inspect import tables

    listed = tables.rejected(snapshot.read(dataset, number), _split(split))
    _show(listed, lambda row: f"{row['reason']} {row['uri']} ({row['detail']})", as_json, as_csv, parquet)


@app.command("classes")
def classes(dataset: Dataset, number: Number = None, as_json: Json = False, home: Home = None) -> None:
    """List the classes of a snapshot: the number that shards hold, the name, and how many images each split has."""
    prepare(home, as_json=as_json)
    from pipeline.inspect import history

    contents = history.contents(snapshot.read(dataset, number))
    names = [*enumerate(contents.snapshot.classes), *([(-1, "")] if "" in contents.images_by_class else [])]
    rows = [
        {
            "class": label,
            "name": name,
            **{split: contents.images_by_class.get(name, {}).get(split, 0) for split in SPLITS},
        }
        for label, name in names
    ]
    if as_json:
        print_json(rows)
        return
    print_table([{**row, "name": row["name"] or "(no label)"} for row in rows])


def _show(
    listed: "Iterator[pa.Table]",
    line: Callable[[dict[str, Any]], str],
    as_json: bool,
    as_csv: bool,
    parquet: Path | None,
) -> None:
    """Print rows as lines, JSON or CSV as they are read, or write them into a Parquet file."""
    if parquet is not None:
        if not parquet.absolute().parent.is_dir():
            raise IgptError(f"{parquet}: the folder {parquet.parent} does not exist; create it first")
        import pyarrow as pa
        import pyarrow.parquet as pq

        from pipeline.inspect import tables

        table = tables.together(listed)
        pq.write_table(pa.table({}) if table is None else table, parquet, compression="zstd")
        console.print(f"{parquet}: {0 if table is None else len(table):,} rows")
    elif as_json:
        _print_json(row for table in listed for row in table.to_pylist())
    elif as_csv:
        _print_csv(listed)
    else:
        for table in listed:
            for row in table.to_pylist():
                console.print(line(row))


def _print_json(rows: Iterable[dict[str, Any]]) -> None:
    """Print a list of rows, one a line."""
    separator = "[\n"
    for row in rows:
        write(sys.stdout, separator + json.dumps(as_json_types(row), allow_nan=False))
        separator = ",\n"
    write(sys.stdout, "[]\n" if separator == "[\n" else "\n]\n")


def _print_csv(listed: "Iterable[pa.Table]") -> None:
    """Print rows below a heading: the columns of the first table, and of no later one."""
    writer = None
    for table in listed:
        if writer is None:
            writer = csv.DictWriter(
                sys.stdout, table.column_names, restval="", extrasaction="ignore", lineterminator="\n"
            )
            writer.writeheader()
        writer.writerows(table.to_pylist())
