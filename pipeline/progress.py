"""How a long step reports its progress to its caller, and how that is written."""

from typing import Protocol


class Progress(Protocol):
    """Called with the step's name, the work done, the total (0: unknown) and a detail, such as the unit of both."""

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None: ...


def together(*listeners: Progress) -> Progress:
    """A progress that calls several others."""

    def call_all(step: str, done: int, total: int, detail: str = "") -> None:
        for listener in listeners:
            listener(step, done, total, detail)

    return call_all


def silent(step: str, done: int, total: int, detail: str = "") -> None:
    """A progress that does nothing."""


def in_words(step: str, done: int, total: int, detail: str = "") -> str:
    """One line: `shards 1,200 of 50,000 images`."""
    count = f"{done:,} of {total:,} {detail}" if total else f"{done:,} {detail}" if done else detail
    return " ".join(f"{step} {count}".split())
