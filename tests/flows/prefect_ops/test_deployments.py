"""What `igpt deploy` reads and sends: schedules, parameters, and the one-line error for an invalid schedule."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flows import scheduled
from flows.prefect_ops import deployments
from pipeline.errors import IgptError


def write(folder: Path, **schedule: Any) -> Path:
    entry = {
        "name": "nightly",
        "entrypoint": "flows.scheduled.scheduled_build",
        "work_pool": {"name": "igpt"},
        "parameters": {"config": {"raw": "s3://raw/digits", "dataset": "s3://datasets/digits"}},
        "schedules": [{"slug": "nightly", **schedule}],
    }
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump({"deployments": [entry]}))
    return path


def test_intervals_start_at_the_anchor_date(tmp_path: Path) -> None:
    (deployable,) = deployments.read(write(tmp_path, interval=3600, anchor_date="2026-01-05T04:00:00Z"))
    (schedule,) = deployments._deployment(deployable).schedules
    assert schedule.schedule.anchor_date == datetime(2026, 1, 5, 4, tzinfo=UTC)
    assert schedule.schedule.interval == timedelta(hours=1)


def test_without_an_anchor_date_intervals_start_now(tmp_path: Path) -> None:
    (deployable,) = deployments.read(write(tmp_path, interval=3600))
    (schedule,) = deployments._deployment(deployable).schedules
    assert abs(schedule.schedule.anchor_date - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ({}, "give either cron or interval"),
        ({"cron": "0 2 * * *", "interval": 60}, "give either cron or interval"),
        ({"cron": "0 2 * * *", "anchor_date": "2026-01-05T04:00:00Z"}, "anchor_date is only for interval"),
        ({"interval": 60, "anchor_date": "tomorrow"}, "anchor_date"),
        ({"interval": 60, "anchor": "2026-01-05"}, "unknown field schedules.0.anchor"),
    ],
)
def test_an_invalid_schedule_is_refused_in_one_line(schedule: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(IgptError, match=reason) as raised:
        deployments.read(write(tmp_path, **schedule))
    assert "prefect.yaml: deployment 1: " in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "schedule",
    [{"cron": "every day"}, {"cron": "0 2 * * *", "timezone": "Europe/Nowhere"}, {"interval": 0}, {"interval": 1e300}],
)
def test_a_schedule_that_prefect_refuses_is_told_before_anything_is_registered(
    schedule: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(IgptError, match=r"prefect\.yaml: nightly: not a deployment for Prefect") as raised:
        deployments.read(write(tmp_path, **schedule))
    assert "\n" not in str(raised.value)


FLAT = """
deployments:
  - name: weekly
    entrypoint: flows.scheduled.scheduled_refresh
    work_pool: {name: igpt, job_variables: {retries: 3, on: yes}}
    parameters:
      config:
        dataset: {raw: s3://raw/x, dataset: s3://datasets/x, resolution: 3_2}
        pretrain:
          runs: s3://runs/x
          learning_rate: 1e-3
          use_gpu: yes
          experiment: 2026-11-26
          optimizer: {steps: 1e3}
        probe: {strengths: [1e-2, 1]}
  - name: watch
    entrypoint: flows.scheduled.scheduled_build
    work_pool: {name: igpt}
    parameters:
      config: {raw: s3://raw/x, dataset: s3://datasets/x}
      quiet_seconds: 600
"""


def test_flat_parameters_are_sent_as_the_schema_of_the_flow_has_them(tmp_path: Path) -> None:
    """The server validates parameters against the schema before any of our code runs."""
    path = tmp_path / "prefect.yaml"
    path.write_text(FLAT)
    weekly, watch = map(deployments._deployment, deployments.read(path))
    assert weekly.parameters["config"]["pretrain"] == {
        "keeping": {"runs": "s3://runs/x"},
        "optimizer": {"learning_rate": 0.001, "steps": 1000},
        "execution": {"use_gpu": True},
        "tracking": {"experiment": "2026-11-26"},
    }
    assert weekly.parameters["config"]["probe"] == {"strengths": [0.01, 1.0]}
    assert weekly.job_variables == {"retries": 3, "on": True}
    assert watch.parameters["quiet_seconds"] == 600
    for deployment in (weekly, watch):
        schema = deployment._parameter_openapi_schema.model_dump_for_openapi()
        jsonschema.validate(json.loads(json.dumps(deployment.parameters)), schema)
    limits = schema_of(weekly, "OptimizerSettings")["steps"]
    assert (limits["minimum"], limits["description"]) == (1, "Number of optimizer steps.")


def schema_of(deployment: Any, name: str) -> dict[str, Any]:
    return deployment._parameter_openapi_schema.definitions[name]["properties"]


def test_flat_parameters_of_an_existing_deployment_still_run() -> None:
    """The previous version stored them flat; Prefect validates them against the flow's current signature."""
    stored = {
        "dataset": {"raw": "s3://raw/x", "dataset": "s3://datasets/x"},
        "pretrain": {"runs": "s3://runs/x", "preset": "tiny", "steps": 7, "learning_rate": "1e-3"},
    }
    config = scheduled.scheduled_refresh.validate_parameters({"config": stored})["config"]
    assert (config.pretrain.keeping.runs, config.pretrain.optimizer.learning_rate) == ("s3://runs/x", 0.001)
    stored["pretrain"]["steps"] = 0
    with pytest.raises(IgptError, match=r"pretrain\.optimizer\.steps is 0: it must be at least 1"):
        scheduled.scheduled_refresh.validate_parameters({"config": stored})
