"""The sections of `igpt --help`: commands by what people want to do."""

from typing import Any

from typer.core import TyperGroup

SECTIONS = {
    "Begin": ("demo", "up", "status", "down", "doctor", "config"),
    "Make a dataset": ("dataset",),
    "Train, and see what was learned": ("refresh", "pretrain", "runs", "probe", "evaluate"),
    "Use a model": (
        *("models", "playground", "sample", "complete", "upscale", "score", "features", "classify", "serve", "convert"),
    ),
    "Run it every night": ("deploy", "worker", "metrics", "backup", "clean"),
}


class InSections(TyperGroup):
    """A group whose help lists its commands in these sections; one that is in none comes last.

    The types of contexts and formatters are private to Typer.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of the sections."""
        order = [name for names in SECTIONS.values() for name in names]
        return sorted(self.commands, key=lambda name: order.index(name) if name in order else len(order))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group of commands."""
        longest = max(len(name) for name in self.commands)
        limit = formatter.width - 6 - longest
        others = tuple(name for name in self.commands if not any(name in names for names in SECTIONS.values()))
        for section, names in {**SECTIONS, "Others": others}.items():
            rows = [
                (name.ljust(longest), self.commands[name].get_short_help_str(limit))
                for name in names
                if name in self.commands
            ]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)
