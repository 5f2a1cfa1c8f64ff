"""How a long step tells its caller how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called with the step's name, how much is done, how much there is (0: unknown) and what else is worth a word."""

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None: ...


def silent(step: str, done: int, total: int, detail: str = "") -> None:
    """Say nothing."""
