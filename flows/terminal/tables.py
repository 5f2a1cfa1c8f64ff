"""Results on standard output: a table for people, JSON for programs."""

import json
import sys
from collections.abc import Mapping, Sequence

from rich.cells import cell_len

from flows.terminal.console import console


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows below a heading, numbers aligned right and text left; nothing if there are no rows."""
    if not rows:
        return
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    numeric = [all(isinstance(row[name], int | float) for row in rows) for name in names]
    widths = [max(cell_len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        parts = []
        for text, width, right in zip(line, widths, numeric, strict=True):
            padding = " " * (width - cell_len(text))
            parts.append(padding + text if right else text + padding)
        console.print("  ".join(parts).rstrip(), markup=False)


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def size_text(count: int) -> str:
    """A number of bytes with a binary unit, such as 1.5 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def print_json(value: object) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
