"""Where training workers leave news for the driver. Apart from ray_train.py, so that its actor need not load torch."""

from pipeline.errors import IgptError


class Mailbox:
    """An actor in which rank 0 leaves its newest news, and any worker an error that is the user's to mend."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.metrics: dict[str, float] = {}
        self.warnings: list[str] = []
        self.failure: IgptError | None = None

    def beat(self, step: int) -> None:
        """A step is done."""
        self.step = step

    def tell(self, metrics: dict[str, float]) -> None:
        """Newer values of some metrics."""
        self.metrics.update(metrics)

    def warn(self, line: str) -> None:
        """A line for the user."""
        self.warnings.append(line)

    def fail(self, error: IgptError) -> None:
        """What ended the training; the first is kept."""
        self.failure = self.failure or error

    def read(self) -> tuple[int | None, dict[str, float], list[str], IgptError | None]:
        """The step (None before the first), the metrics, the warnings since the last reading, and the failure."""
        warnings, self.warnings = self.warnings, []
        return self.step, self.metrics, warnings, self.failure
