"""Throughput metrics and system metrics."""

import threading
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from igpt_model.config import PretrainConfig
from igpt_model.model.config import ModelConfig, Objective
from igpt_model.model.network import ImageGPT
from igpt_model.training import throughput
from igpt_model.training.host_metrics import HostMeter, host_monitor
from igpt_model.training.throughput import Throughput, product_rate
from igpt_model.worker import Worker

MODEL = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16)


def test_the_metrics_cover_the_steps_since_the_last_call() -> None:
    config = PretrainConfig.from_fields(runs="runs", global_batch=100)
    clock = iter([0.0, 1.0, 1.5, 2.0, 10.0, 12.0, 20.0, 21.0])
    with (
        mock.patch.object(throughput, "product_rate", return_value=1e9),
        mock.patch.object(throughput.time, "perf_counter", lambda: next(clock)),
    ):
        throughput_meter = Throughput(MODEL, config, Worker(rank=0, world_size=2))
        assert throughput_meter.values() == {}
        with throughput_meter.step(), throughput_meter.waiting():  # 2 s, half a second of it waiting
            pass
        with throughput_meter.step():  # 2 s more; the eight seconds in between do not count
            pass
        assert throughput_meter.values() == pytest.approx(
            {
                "images_per_second": 50,
                "tokens_per_second": 50 * 64,
                "flop_utilization": 50 * MODEL.flops_per_image / 2e9,
                "data_wait_share": 0.5 / 4,
            }
        )
        with throughput_meter.step():
            pass
        assert throughput_meter.values()["images_per_second"] == pytest.approx(100)


@pytest.mark.parametrize("objective", ["autoregressive", "masked"])
def test_operations_are_those_that_pytorch_counts(objective: Objective) -> None:
    config = replace(MODEL, objective=objective)
    with torch.device("meta"):
        model = ImageGPT(config)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 64, dtype=torch.int64)).sum().backward()
    # PyTorch counts all of causal attention, flops_per_image half of it.
    half = 3 * config.layers * 2 * config.width * config.positions**2 if objective == "autoregressive" else 0
    assert config.flops_per_image == counter.get_total_flops() - half


def test_measuring_the_machine_leaves_the_random_state_unchanged() -> None:
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    assert product_rate(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.rand(5), expected)


def test_a_machine_is_measured() -> None:
    values = HostMeter().values()
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert 0 < values["system_memory_usage_percentage"] < 100
    assert values["system_memory_usage_megabytes"] > 100
    assert values["network_receive_megabytes_per_second"] >= 0


def test_host_metrics_are_logged_until_the_end() -> None:
    logged: list[dict[str, float]] = []
    twice = threading.Event()

    def log(values: dict[str, float]) -> None:
        logged.append(values)
        if len(logged) == 2:
            twice.set()

    with host_monitor(log, period=0.01):
        assert twice.wait(10)
    with host_monitor(lambda values: logged.append({"last": 1.0}), period=1000):
        pass
    assert logged[-1] == {"last": 1.0}
