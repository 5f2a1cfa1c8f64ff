"""One step: the gradient does not depend on how it is computed, and gradients that are not finite are skipped."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.network import UNCONDITIONAL, ImageGPT
from igpt_model.runs import checkpoint
from igpt_model.runs.open_model import load_model
from igpt_model.training import loop as training
from igpt_model.training.loop import train
from igpt_model.training.optim import make_optimizer
from igpt_model.training.parallel import autocast, prepare_blocks
from igpt_model.training.step import StepOutcome, losses, train_step
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from tests.igpt_model.model.test_network import SMALL, make, some_tokens
from tests.igpt_model.training.test_loop import Recorder

CONFIG = PretrainConfig.from_fields(runs="r", preset="tiny", global_batch=12, workers=1)


def inputs_of(tokens: torch.Tensor) -> Inputs:
    return Inputs(tokens_BT=tokens, condition=UNCONDITIONAL, masked_BT=None)


def gradients(model: ImageGPT) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_in_parts(model: ImageGPT, tokens: torch.Tensor, size: int) -> StepOutcome:
    parts = [partial(inputs_of, part) for part in tokens.split(size)]
    return train_step(model, make_optimizer(model, CONFIG, Worker()), parts, 0.001, CONFIG, Worker())


@pytest.mark.parametrize("size", [1, 5, 6])
def test_micro_batches_of_any_size_add_up_to_the_gradient_of_the_global_batch(size: int) -> None:
    tokens = some_tokens(12)
    whole, parts = make(SMALL), make(SMALL)
    expected, outcome = step_in_parts(whole, tokens, 12), step_in_parts(parts, tokens, size)
    assert outcome.loss == pytest.approx(expected.loss, abs=1e-6)
    assert outcome.loss == pytest.approx(losses(make(SMALL), inputs_of(tokens)).mean().item(), abs=1e-6)
    assert outcome.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    part_gradients, whole_gradients = gradients(parts), gradients(whole)
    for name in whole_gradients:
        torch.testing.assert_close(part_gradients[name], whole_gradients[name], atol=1e-6, rtol=1e-4)


EXECUTIONS = [
    {"activation_checkpointing": True},
    pytest.param({"compile": True}, marks=pytest.mark.needs("compiler")),
    pytest.param({"compile": True, "activation_checkpointing": True}, marks=pytest.mark.needs("compiler")),
]


@pytest.mark.parametrize("fields", EXECUTIONS)
def test_how_the_blocks_are_executed_does_not_change_the_gradient(fields: dict) -> None:
    tokens = some_tokens(12)
    plain, prepared = make(SMALL), make(SMALL)
    names = list(prepared.state_dict())
    prepare_blocks(prepared, CONFIG.with_fields(**fields))
    assert list(prepared.state_dict()) == names
    expected, loss = (losses(model, inputs_of(tokens)).mean() for model in (plain, prepared))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    expected.backward()
    loss.backward()
    prepared_gradients, plain_gradients = gradients(prepared), gradients(plain)
    for name in plain_gradients:
        torch.testing.assert_close(prepared_gradients[name], plain_gradients[name], atol=1e-6, rtol=1e-4)


@pytest.mark.needs("compiler")
@pytest.mark.parametrize("recomputed", [False, True])
def test_all_blocks_are_compiled_once(recomputed: bool) -> None:
    model = make(replace(SMALL, layers=12))  # more than the eight compilations after which PyTorch gives up
    prepare_blocks(model, CONFIG.with_fields(compile=True, activation_checkpointing=recomputed))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses(model, inputs_of(some_tokens(12))).mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_bfloat16_computes_in_it_and_keeps_weights_and_losses_in_float32() -> None:
    config = CONFIG.with_fields(precision="bfloat16")
    model, tokens = make(SMALL), some_tokens(12)
    seen: list[torch.dtype] = []
    model.layers[0].mlp_in.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with autocast(config, torch.device("cpu")):
        image_losses = losses(model, inputs_of(tokens))
    assert (seen, image_losses.dtype) == ([torch.bfloat16], torch.float32)
    assert image_losses.mean().item() == pytest.approx(losses(make(SMALL), inputs_of(tokens)).mean().item(), abs=0.01)
    image_losses.mean().backward()
    assert all(
        p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters()
    )


def poison(bad_steps: Callable[[int], bool]) -> Callable[..., StepOutcome]:
    """A train_step whose gradient is not finite at some steps, counted from 0."""
    calls = iter(range(10**6))

    def step(parallel: nn.Module, *arguments: Any) -> StepOutcome:
        number = next(calls)
        hook = parallel.get_parameter("positions").register_hook(
            lambda gradient: gradient * float("nan") if bad_steps(number) else gradient
        )
        try:
            return train_step(parallel, *arguments)
        finally:
            hook.remove()

    return step


@pytest.mark.parametrize("optim", ["adam", "muon"])
def test_the_optimizer_leaves_out_a_step_that_is_not_finite(optim: str) -> None:
    tokens, model = some_tokens(12), make(SMALL)
    optimizer = make_optimizer(model, CONFIG.with_fields(optim=optim, weight_decay=0.1), Worker())

    def state() -> dict[str, torch.Tensor]:
        kept = checkpoint.tensors_of(model, optimizer, None)
        return {name: value.clone() for name, value in kept.items()}

    parts = [partial(inputs_of, tokens)]
    assert train_step(model, optimizer, parts, 0.001, CONFIG, Worker()).finite
    before = state()
    hook = model.positions.register_hook(lambda gradient: gradient * float("inf"))
    outcome = train_step(model, optimizer, parts, 0.001, CONFIG, Worker())
    assert not outcome.finite and torch.tensor(outcome.loss).isfinite()
    after = state()
    assert len(before) > len(list(model.parameters()))  # the moments and the optimizer's count of steps too
    assert all(torch.equal(after[name], value) for name, value in before.items())
    hook.remove()
    assert train_step(model, optimizer, parts, 0.001, CONFIG, Worker()).finite
    assert not torch.equal(state()["weights.positions"], before["weights.positions"])


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_step_is_under_way_before_the_outcome_of_the_last_is_read(
    ema_decay: float | None, data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Noted(StepOutcome):
        @property
        def finite(self) -> bool:
            events.append(f"read {self.number}")
            return super().finite

    def step(*arguments: Any) -> StepOutcome:
        outcome = train_step(*arguments)
        outcome.__class__ = Noted
        outcome.number = sum(event.startswith("made") for event in events) + 1  # type: ignore[attr-defined]
        events.append(f"made {outcome.number}")  # type: ignore[attr-defined]
        return outcome

    monkeypatch.setattr(training, "train_step", step)
    config = config.with_fields(steps=13, evaluate_every=7, checkpoint_every=12, ema_decay=ema_decay)
    train(config, data, str(tmp_path / "run"), Worker(), Recorder())
    read_at_once = {7, 10, 12, 13}  # evaluated, told, saved, the last
    for number in range(1, 14):
        late = [f"made {number + 1}"] if number not in read_at_once and number < 13 else []
        place = events.index(f"made {number}")
        assert events.index(f"read {number}") > place
        assert all(events.index(made) < events.index(f"read {number}") for made in late)
        if number in read_at_once and number < 13:
            assert events.index(f"read {number}") < events.index(f"made {number + 1}")


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.with_fields(steps=10, checkpoint_every=5, max_skipped_steps=2, ema_decay=0.9)
    monkeypatch.setattr(training, "train_step", poison(lambda step: step in (3, 4, 7)))
    recorder = Recorder()
    run = str(tmp_path / "run")
    result = train(config, data, run, Worker(), recorder)
    assert (result.steps, result.images, result.skipped_steps) == (10, 160, 3)
    assert recorder.values[10]["skipped_steps"] == 3
    assert 0 < recorder.values[10]["train_loss"] < 3
    state = checkpoint.read(checkpoint.folder_of(run, 10)).state
    assert (state.skipped, state.skipped_in_a_row) == (3, 0)
    assert all(torch.isfinite(weight).all() for weight in load_model(run).model.state_dict().values())


def test_too_many_skipped_steps_end_the_run_and_it_can_be_resumed(
    data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.with_fields(steps=12, checkpoint_every=6, max_skipped_steps=2)
    run = str(tmp_path / "run")
    monkeypatch.setattr(training, "train_step", poison(lambda step: step >= 4))
    with pytest.raises(IgptError, match="as in the 2 steps before; lower learning_rate") as caught:
        train(config, data, run, Worker(), Recorder())
    assert "\n" not in str(caught.value)
    assert checkpoint.marked_steps(run) == [6]
    monkeypatch.undo()
    result = train(config, data, run, Worker(), Recorder())
    assert (result.steps, result.skipped_steps) == (12, 2)
