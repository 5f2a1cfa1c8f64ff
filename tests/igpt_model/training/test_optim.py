"""The optimizer, its schedule, and the average of the weights."""

from dataclasses import replace

import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.training.optim import learning_rate, make_optimizer, update_average
from igpt_model.worker import Worker
from tests.igpt_model.model.test_network import SMALL, make


def test_the_learning_rate_rises_and_falls_to_zero(config: PretrainConfig) -> None:
    rates = [learning_rate(step, config) for step in range(config.optimizer.steps + 1)]
    warmup_steps = config.optimizer.warmup_steps
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert max(rates) == pytest.approx(config.peak_learning_rate)
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_average_follows_the_weights() -> None:
    average, weights = [torch.zeros(3)], [torch.ones(3)]
    expected = 0.0
    for step in range(1, 200):
        update_average(average, weights, decay=0.9, step=step, applied=torch.tensor(1.0))
        before = average[0].clone()
        update_average(average, weights, decay=0.9, step=step, applied=torch.tensor(0.0))
        assert torch.equal(average[0], before), "a skipped step leaves it as it is"
        expected += (1 - min(0.9, (1 + step) / (10 + step))) * (1 - expected)
        assert average[0].tolist() == pytest.approx([expected] * 3, abs=1e-5)
    assert expected == pytest.approx(1)


def test_weights_decay_in_the_matrices_alone() -> None:
    model = make(replace(SMALL, classes=5, low_resolution=2))
    optimizer = make_optimizer(model, PretrainConfig.from_fields(runs="r", preset="tiny", weight_decay=0.1), Worker())
    decayed, rest = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert len(decayed) + len(rest) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    still = {names[id(parameter)] for parameter in rest}
    embeddings = {"tokens.weight", "class_starts.weight", "positions", "low_positions"}
    assert still == embeddings | {name for name in names.values() if name.endswith("norm.weight")}


def test_muon_takes_the_matrices_of_the_blocks_and_adam_the_rest() -> None:
    model = make(replace(SMALL, classes=5, low_resolution=2))
    config = PretrainConfig.from_fields(runs="r", preset="tiny", optim="muon", weight_decay=0.1)
    optimizer = make_optimizer(model, config, Worker())
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, head, rest = ([names[parameter] for parameter in group["params"]] for group in optimizer.param_groups)
    assert sorted(muon) == sorted(
        f"blocks.{layer}.{matrix}.weight"
        for layer in range(SMALL.layers)
        for matrix in ("attention.qkv", "attention.out", "mlp_in", "mlp_out")
    )
    assert head == ["head.weight"]
    assert sorted(muon + head + rest) == sorted(names.values())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
