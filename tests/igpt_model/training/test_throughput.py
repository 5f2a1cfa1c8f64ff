"""Throughput metrics and system metrics."""

from unittest import mock

import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.model import linear
from igpt_model.model.config import ModelConfig
from igpt_model.model.linear import Linear
from igpt_model.training import throughput
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


def test_a_machine_that_was_busy_when_it_was_measured_is_not_used_by_more_than_all_of_it() -> None:
    config = PretrainConfig.from_fields(runs="runs", global_batch=100)
    clock = iter([0.0, 1.0, 1.0, 3.0])
    with (
        mock.patch.object(throughput, "product_rate", return_value=1.0),
        mock.patch.object(throughput.time, "perf_counter", lambda: next(clock)),
    ):
        meter = Throughput(MODEL, config, Worker())
        for expected in (1.0, 0.5):
            with meter.step():
                pass
            assert meter.values()["flop_utilization"] == pytest.approx(expected)


def test_the_reference_is_what_layers_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = Linear.forward

    def noted(layer: Linear, x_BSC: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x_BSC.shape))
        return forward(layer, x_BSC)

    monkeypatch.setattr(Linear, "forward", noted)
    product_rate(torch.device("cpu"), torch.float32)
    assert set(shapes) == {(1, 512, 512)} and linear._use_convolution(torch.empty(1, 512, 512)) == linear._ONEDNN


def test_measuring_the_machine_leaves_the_random_state_unchanged() -> None:
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    assert product_rate(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.rand(5), expected)
