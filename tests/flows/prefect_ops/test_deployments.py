"""What `igpt deploy` reads: schedules that are no schedules are refused in a line."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.prefect_ops import deployments
from pipeline.errors import IgptError


def write(folder: Path, **schedule: Any) -> Path:
    entry = {
        **{"name": "nightly", "entrypoint": "flows.scheduled.scheduled_build", "work_pool": {"name": "igpt"}},
        "parameters": {"config": {"raw": "s3://raw/digits", "dataset": "s3://datasets/digits"}},
        "schedules": [{"slug": "nightly", **schedule}],
    }
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump({"deployments": [entry]}))
    return path


def test_intervals_are_counted_from_the_time_that_is_given(tmp_path: Path) -> None:
    (found,) = deployments.read(write(tmp_path, interval=3600, anchor_date="2026-01-05T04:00:00Z"))
    (schedule,) = deployments._deployment(found).schedules
    assert schedule.schedule.anchor_date == datetime(2026, 1, 5, 4, tzinfo=UTC)
    assert schedule.schedule.interval == timedelta(hours=1)


def test_without_one_they_are_counted_from_now(tmp_path: Path) -> None:
    (found,) = deployments.read(write(tmp_path, interval=3600))
    (schedule,) = deployments._deployment(found).schedules
    assert abs(schedule.schedule.anchor_date - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ({}, "give either cron or interval"),
        ({"cron": "0 2 * * *", "interval": 60}, "give either cron or interval"),
        ({"cron": "0 2 * * *", "anchor_date": "2026-01-05T04:00:00Z"}, "anchor_date is for interval"),
        ({"interval": 60, "anchor_date": "tomorrow"}, "anchor_date"),
        ({"interval": 60, "anchor": "2026-01-05"}, "unknown field schedules.0.anchor"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(IgptError, match=reason) as raised:
        deployments.read(write(tmp_path, **schedule))
    assert "prefect.yaml: deployment 1: " in str(raised.value) and "\n" not in str(raised.value)
