"""What a training run has reported, kept in its folder beside the checkpoints: {run}/reports/{step:08d}.json each.

So the curve is whole wherever the run was cut off and whatever the tracking server had missed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class Report:
    """Values of some metrics at a step, named as in MLflow."""

    step: int
    values: dict[str, float]


def write(run: str, step: int, reports: Sequence[Report]) -> None:
    """Keep what was reported up to the checkpoint of a step, since the one before."""
    data = [[report.step, report.values] for report in reports]
    objects.write_bytes(objects.join(run, "reports", f"{step:08d}.json"), json.dumps(data).encode())


def read(run: str) -> list[Report]:
    """All that was reported, each step once: as it was reported last."""
    found: dict[int, dict[str, float]] = {}
    for file in objects.list_files(objects.join(run, "reports")):
        for step, values in json.loads(objects.read_bytes(file.url)):
            found[step] = values
    return [Report(step=step, values=found[step]) for step in sorted(found)]
