"""The results of the GPU benchmarks: results.json and report.md, written anew with every row."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.parts import Ending


class Report:
    """Collects rows and keeps both files up to date."""

    def __init__(self, out: Path, described: Mapping[str, object], endings: Sequence[Ending]) -> None:
        self._out, self._described, self._endings = out, described, endings
        self._tables: dict[str, list[dict[str, object]]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def add(self, table: str, row: Mapping[str, object]) -> None:
        """Add a row to a table, and print it."""
        self._tables.setdefault(table, []).append(dict(row))
        print(f"{table}: {', '.join(f'{key} {_text(value)}' for key, value in row.items())}", flush=True)
        self.write()

    def write(self) -> None:
        """Write both files."""
        endings = [asdict(ending) for ending in self._endings]
        content = {"machine": dict(self._described), "parts": endings, "tables": self._tables}
        (self._out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
        packages = self._described.get("packages")
        described = {**self._described, **(packages if isinstance(packages, dict) else {})}
        described.pop("packages", None)
        lines = ["# On a GPU", "", ", ".join(f"{key} {_text(value)}" for key, value in described.items()), ""]
        for ending in self._endings:
            lines.append(f"- {ending.part}: {ending.seconds:.0f} s" + (f", {ending.error}" if ending.error else ""))
        for title, rows in self._tables.items():
            keys = list(dict.fromkeys(key for row in rows for key in row))
            lines += ["", f"## {title}", "", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
            lines += ["| " + " | ".join(_text(row.get(key, "")) for key in keys) + " |" for row in rows]
        (self._out / "report.md").write_text("\n".join(lines) + "\n")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
