"""The metrics that outlive flow runs: what each source tells, and a scrape while sources fail."""

import time
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.monitor import runs
from flows.monitor.exporter import Exporter
from flows.monitor.models import ModelReader
from flows.monitor.sample import GAUGES, Sample
from flows.monitor.store import StoreReader
from flows.monitor.watched import watched
from flows.prefect_ops import deployments
from flows.prefect_ops.deployment_runs import RunOfDeployment
from flows.services.ports import HOST, free_port
from pipeline.dataset.publish import commit
from pipeline.store import lease
from tests.pipeline.dataset.test_snapshot import entry, make

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def values(samples: list[Sample]) -> dict[tuple[str, ...], float]:
    """The values by name and label values."""
    assert {sample.name for sample in samples} <= set(GAUGES)
    result = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert len(result) == len(samples), "a series twice"
    return result


def run(state: str, *, due: float = 60, started: float | None = None, ended: float | None = None) -> RunOfDeployment:
    """A run of `nightly`; times are minutes before NOW."""

    def at(minutes: float | None) -> datetime | None:
        return None if minutes is None else NOW - timedelta(minutes=minutes)

    return RunOfDeployment(deployment="nightly", state=state, due=at(due), started=at(started), ended=at(ended))


def test_what_the_deployments_of_production_work_on_is_watched() -> None:
    deployables = deployments.read(ROOT / "infra" / "prefect.yaml")
    found = watched([d.entry.name for d in deployables], [d.config for d in deployables])
    assert found.datasets == ("s3://datasets/imagenet-32",)
    assert found.leases == (
        *("s3://datasets/imagenet-32", "s3://datasets/imagenet-32/turn"),
        "s3://runs/imagenet-32/turn",
    )
    assert found.models == ("igpt-s-imagenet-32",)
    assert found.deployments == ("candidate", "nightly", "watch", "weekly")


def test_a_deployment_without_runs_has_zeros() -> None:
    samples = runs.samples(["weekly"], [run("COMPLETED", ended=5)], NOW)
    assert set(values(samples).values()) == {0.0}
    assert {sample.name for sample in samples} == {name for name in GAUGES if name.startswith("igpt_deployment_")}


def test_runs_are_counted_by_state_and_lateness() -> None:
    told = values(
        runs.samples(
            ["nightly"],
            [
                *(
                    run("SCHEDULED", due=-60),
                    run("SCHEDULED", due=0.5),
                    run("SCHEDULED", due=20),
                    run("SCHEDULED", due=30),
                ),
                *(run("RUNNING", started=90), run("RUNNING", started=10)),
                *(run("CRASHED", ended=60), run("CRASHED", ended=120), run("CRASHED", ended=60 * 25)),
                run("COMPLETED", ended=60 * 26),
            ],
            NOW,
        )
    )
    assert told["igpt_deployment_runs", "nightly", "SCHEDULED"] == 2
    assert told["igpt_deployment_runs", "nightly", "LATE"] == 2
    assert told["igpt_deployment_runs", "nightly", "RUNNING"] == 2
    assert told["igpt_deployment_late_seconds", "nightly"] == 30 * 60
    assert told["igpt_deployment_running_seconds", "nightly"] == 90 * 60
    assert told["igpt_deployment_ended_last_day", "nightly", "CRASHED"] == 2
    assert told["igpt_deployment_ended_last_day", "nightly", "COMPLETED"] == 0
    hour_ago = (NOW - timedelta(hours=1)).timestamp()
    assert told["igpt_deployment_ended_timestamp_seconds", "nightly", "CRASHED"] == hour_ago
    assert told["igpt_deployment_ended_timestamp_seconds", "nightly", "FAILED"] == 0


def test_the_store_tells_of_the_newest_snapshot_and_of_leases(tmp_path: Path) -> None:
    dataset = str(tmp_path)
    read = StoreReader((dataset,), (dataset,))
    empty = values(read())
    assert empty["igpt_snapshot_number", dataset] == empty["igpt_snapshot_published_timestamp_seconds", dataset] == 0
    assert empty["igpt_lease_term", dataset] == 0
    began = time.time()
    for number in (1, 2):
        crops = replace(entry("train", 0), samples=40, images=10)  # four crops of each image
        commit(make(tmp_path, number, shards=(crops, entry("validation", 0))))
        with lease.hold(dataset):
            pass
        told = values(read())
        assert told["igpt_snapshot_number", dataset] == told["igpt_lease_term", dataset] == number
    assert began - 2 < told["igpt_snapshot_published_timestamp_seconds", dataset] < time.time() + 2
    assert told["igpt_snapshot_images", dataset] == 10 + entry("validation", 0).images
    assert told["igpt_snapshot_rejected", dataset, "truncated"] == 2


def test_the_registry_tells_of_the_newest_version_the_champion_and_the_probe(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client, read = MlflowClient(uri), ModelReader(uri, ("m",))
    assert set(values(read()).values()) == {0.0}, "not registered yet"
    client.create_registered_model("m")
    for number in ("1", "2"):
        assert str(client.create_model_version("m", "s3://mlflow/x").version) == number
        client.set_model_version_tag("m", number, "igpt.probe.d.accuracy", f"0.{number}")
        client.set_model_version_tag("m", number, "igpt.probe.d.note", "text")
    client.set_registered_model_alias("m", "champion", "1")
    client.set_model_version_tag("m", "2", "igpt.probed_at", "1764240000")
    told = values(read())
    assert abs(told.pop(("igpt_model_registered_timestamp_seconds", "m")) - time.time()) < 60
    assert told == {
        ("igpt_model_version", "m"): 2,
        ("igpt_model_champion_version", "m"): 1,
        ("igpt_model_probe", "m", "d.accuracy"): 0.2,
        ("igpt_model_probed_timestamp_seconds", "m"): 1764240000,
    }


def scrape(port: int) -> dict[str, float]:
    """Every line of a scrape that has a value."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_source_that_fails_or_hangs_keeps_its_values_and_costs_no_scrape_anything() -> None:
    answers = iter([[Sample(name="igpt_snapshot_number", value=7, labels={"dataset": "d"})]])
    said: list[str] = []

    def hangs() -> list[Sample]:
        time.sleep(3)
        return []

    exporter = Exporter({"store": lambda: next(answers), "mlflow": hangs}, said.append, every_seconds=0.2)
    port = free_port()
    with exporter.serving(HOST, port):
        deadline = time.monotonic() + 30
        while (told := scrape(port)).get('igpt_snapshot_number{dataset="d"}') != 7 or told[
            'igpt_source_up{source="store"}'
        ]:
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
    assert told['igpt_source_up{source="mlflow"}'] == 0
    assert told['igpt_source_read_timestamp_seconds{source="store"}'] > 0
    assert said[0] == "reads store"
    assert [line for line in said if line.startswith("cannot read store: StopIteration")] == said[1:2], "said once"


@pytest.mark.parametrize("name", GAUGES)
def test_a_time_has_its_unit_in_its_name(name: str) -> None:
    assert ("When " in GAUGES[name]) == name.endswith("_timestamp_seconds")
