"""The metrics that a training run logged, stored beside its checkpoints: {run}/reports/{step:08d}.json.

The curves are complete even if the run was interrupted or the tracking server was down.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class LoggedMetrics:
    """Metrics logged at a step, by their names in MLflow."""

    step: int
    values: dict[str, float]


def write(run: str, step: int, entries: Sequence[LoggedMetrics]) -> None:
    """Store the metrics logged between the previous checkpoint and the checkpoint of a step."""
    data = [[entry.step, entry.values] for entry in entries]
    objects.write_bytes(objects.join(run, "reports", f"{step:08d}.json"), json.dumps(data).encode())


def read(run: str) -> list[LoggedMetrics]:
    """All logged metrics by step; for a step that was logged twice, the last values."""
    by_step: dict[int, dict[str, float]] = {}
    for file in objects.list_files(objects.join(run, "reports")):
        for step, values in json.loads(objects.read_bytes(file.url)):
            by_step[step] = values
    return [LoggedMetrics(step=step, values=by_step[step]) for step in sorted(by_step)]
