"""Results on standard output: a table for people, JSON for programs."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from flows.terminal.console import console, write
from pipeline.printable import printable


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows below a heading, numbers aligned right and text left; nothing if there are no rows."""
    if not rows:
        return
    names = list(rows[0])
    cells = [[printable(name) for name in names], *([_text(row[name]) for name in names] for row in rows)]
    numeric = [all(isinstance(row[name], int | float) for row in rows) for name in names]
    widths = [max(cell_len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        parts = []
        for text, width, right in zip(line, widths, numeric, strict=True):
            padding = " " * (width - cell_len(text))
            parts.append(padding + text if right else text + padding)
        console.print("  ".join(parts).rstrip())


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def size_text(count: int) -> str:
    """A number of bytes with a binary unit, such as 1.5 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def print_json(value: object) -> None:
    """Print a value as JSON that every parser reads. Raises OutputError."""
    write(sys.stdout, json.dumps(as_json_types(value), indent=2, allow_nan=False) + "\n")


def as_json_types(value: Any) -> Any:
    """The value in the types of JSON. Numbers that are not finite become null, as JSON has none."""
    if isinstance(value, Mapping):
        return {_utf8(str(name)): as_json_types(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json_types(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return _utf8(str(value))


def _utf8(text: str) -> str:
    """The text, unless it has bytes that are not UTF-8, which JSON cannot hold: then as it is printed."""
    return printable(text) if any("\ud800" <= character <= "\udfff" for character in text) else text
