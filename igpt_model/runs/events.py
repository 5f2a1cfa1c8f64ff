"""Who hears how a training goes."""

from typing import Protocol


class Listener(Protocol):
    """Hears on rank 0 how a training goes. Metrics are named as in MLflow."""

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def warn(self, line: str) -> None: ...

    def saved(self, step: int) -> None:
        """Hear that the checkpoint of a step can be read; called in the thread that wrote it."""
