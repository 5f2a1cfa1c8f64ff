"""What the gauges of a run are set to. Ray, which serves them, is not started."""

import time

import pytest

from pipeline.cluster import metrics
from pipeline.cluster.metrics import Meter


class Gauges:
    """Stands for Ray's gauges: the last value of each, by name and labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def __call__(self, name: str, description: str, labels: tuple[str, ...]) -> "Gauge":
        assert description
        return Gauge(self, name, labels)


class Gauge:
    def __init__(self, gauges: Gauges, name: str, labels: tuple[str, ...]) -> None:
        self._gauges, self._name, self._labels = gauges, name, labels

    def set(self, value: float, labels: dict[str, str]) -> None:
        assert tuple(labels) == self._labels
        self._gauges.values[self._name, tuple(labels.items())] = value


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Gauges:
    gauges = Gauges()
    monkeypatch.setattr(metrics, "_gauge", gauges)
    return gauges


def test_a_step_has_its_own_progress(gauges: Gauges) -> None:
    meter = Meter("build", "s3://datasets/digits")
    meter.progress("list", 5, 0, "images")
    meter.progress("shards", 20, 100, "images")
    meter._set()
    labels = (("stage", "build"), ("subject", "s3://datasets/digits"), ("step", "shards"))
    assert gauges.values == {("stage_done", labels): 20, ("stage_total", labels): 100}


def test_of_the_values_of_a_run_the_described_ones_are_exported_with_their_step(gauges: Gauges) -> None:
    meter = Meter("pretrain", "runs/a", {"train_loss": "Loss", "step": "Steps"})
    meter.record(10, {"system/cpu": 3.0})
    meter._set()
    assert gauges.values == {}
    meter.record(20, {"train_loss": 1.5, "system/cpu": 3.0})
    meter.record(30, {"system/cpu": 4.0})
    meter._set()
    labels = (("run", "runs/a"),)
    assert gauges.values == {("train_loss", labels): 1.5, ("step", labels): 20}


def test_the_newest_values_are_set_again_and_again(gauges: Gauges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_REPEAT_SECONDS", 0.01)  # a gauge that is not set again disappears
    labels = (("stage", "build"), ("subject", "d"), ("step", "list"))
    deadline = time.monotonic() + 30
    with Meter("build", "d") as meter:
        for done in (7, 8):
            meter.progress("list", done, 9)
            while gauges.values.get(("stage_done", labels)) != done:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        gauges.values.clear()
        while not gauges.values:
            assert time.monotonic() < deadline
            time.sleep(0.005)
