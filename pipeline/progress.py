"""How a long step tells its caller how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called with the step's name, how much is done, how much there is (0: unknown) and what else is worth a word."""

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None: ...


def together(*listeners: Progress) -> Progress:
    """A progress that tells each of several."""

    def tell(step: str, done: int, total: int, detail: str = "") -> None:
        for listener in listeners:
            listener(step, done, total, detail)

    return tell


def silent(step: str, done: int, total: int, detail: str = "") -> None:
    """Say nothing."""
