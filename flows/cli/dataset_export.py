"""The command `igpt dataset export`: a snapshot as pictures."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.dataset_tables import Split
from flows.cli.options import Dataset, Home, Json, Number, prepare
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json

app = typer.Typer(rich_markup_mode=None)


@app.command("export")
def export(
    dataset: Dataset,
    number: Number = None,
    *,
    out: Annotated[str, typer.Option(help="An empty or new folder or URL.", show_default=False)],
    split: Split = None,
    format: Annotated[
        str, typer.Option(help="png: tars of PNG files; rgb: tars of arrays [H, W, 3]; folders: PNG files by class.")
    ] = "png",
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Write a snapshot as pictures for other programs; manifest.json, which lists them, is written last."""
    prepare(home, as_json=as_json)
    reporter = Reporter("dataset")
    from pipeline.readers import export as exports

    done = exports.export(dataset, out, split=split, snapshot=number, format=format, progress=reporter)
    reporter.close()
    if as_json:
        print_json({**asdict(done), "samples": done.samples})
        return
    kind = "folders" if done.format == "folders" else "tars"
    console.print(f"{done.out}: {done.samples:,} images of snapshot {done.snapshot} in {len(done.files)} {kind}")
