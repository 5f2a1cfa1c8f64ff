"""Training event callbacks."""

from typing import Protocol


class Listener(Protocol):
    """Callbacks of a training run, called on rank 0. Metrics have the names they have in MLflow."""

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def warn(self, line: str) -> None: ...

    def saved(self, step: int) -> None:
        """The checkpoint of a step is complete; called in the thread that wrote it."""
