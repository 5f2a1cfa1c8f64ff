"""Steps far above the last hundred are left out, told, and judged alike after a resume; test_sharing.py has workers."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint
from igpt_model.training import loop as training
from igpt_model.training.loop import train
from igpt_model.training.spikes import WINDOW, SpikeGuard
from igpt_model.training.step import StepOutcome, train_step
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from tests.igpt_model.training.test_loop import KilledError, Recorder, final_weights

CALM = [(2 + step % 2 / 10, 1 + step % 2 / 10) for step in range(WINDOW)]  # deviation 0.05 around 2.05 and 1.05


def judge(guard: SpikeGuard, loss: float, norm: float) -> bool:
    return bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))


@pytest.mark.parametrize(
    ("before", "value", "spike"),
    [
        pytest.param(CALM, (2.1, 1.1), False, id="as before"),
        pytest.param(CALM, (2.34, 1.0), False, id="a loss 5.8 deviations above"),
        pytest.param(CALM, (2.36, 1.0), True, id="a loss 6.2 deviations above"),
        pytest.param(CALM, (2.0, 1.36), True, id="a norm 6.2 deviations above"),
        pytest.param(CALM, (0.1, 0.1), False, id="far below"),
        pytest.param(CALM[:50], (9.0, 9.0), True, id="fifty steps before it"),
        pytest.param(CALM[:49], (9.0, 9.0), False, id="too few steps before it"),
        pytest.param([], (9.0, 9.0), False, id="the first step"),
        pytest.param([(9.0, 9.0)] * 100 + CALM, (4.0, 1.0), True, id="only the last hundred count"),
        pytest.param(CALM, (math.nan, 1.0), False, id="not finite is something else"),
        pytest.param(CALM, (math.inf, 1.0), False, id="neither is infinite"),
        pytest.param([(2.0, 1.0)] * 100, (2.0, 1.0), False, id="no deviation at all"),
    ],
)
def test_a_step_is_a_spike_by_the_hundred_before_it(
    before: Sequence[tuple[float, float]], value: tuple[float, float], spike: bool
) -> None:
    assert judge(SpikeGuard(6, before, Worker()), *value) == spike


def test_steps_that_are_not_finite_do_not_count_among_the_last() -> None:
    guard = SpikeGuard(6, CALM, Worker())
    for _ in range(WINDOW):
        judge(guard, math.nan, math.inf)
    assert judge(guard, 9.0, 1.0)


def test_a_loss_that_has_risen_for_good_is_taken_after_a_few_steps() -> None:
    guard = SpikeGuard(6, CALM, Worker())
    verdicts = [judge(guard, 9.0, 1.0) for _ in range(10)]
    assert verdicts == [True] * 3 + [False] * 7


def test_a_guard_made_of_the_last_values_judges_with_the_same_bits() -> None:
    numbers = random.Random(0)
    values = [tuple(torch.rand(2, generator=torch.Generator().manual_seed(n)).tolist()) for n in range(150)]
    values[70] = (math.nan, 1.0)
    kept: list[Any] = []
    guard = SpikeGuard(2, [], Worker())
    for step, value in enumerate(values):
        if numbers.random() < 0.3:
            guard = SpikeGuard(2, kept, Worker())
        uninterrupted = SpikeGuard(2, [], Worker())
        for earlier in values[:step]:
            judge(uninterrupted, *earlier)
        assert judge(guard, *value) == judge(uninterrupted, *value), step
        assert torch.equal(guard._last_2N.nan_to_num(-1), uninterrupted._last_2N.nan_to_num(-1)), step
        kept = [*kept, value][-WINDOW:] if math.isfinite(sum(value)) else kept


def spiking(steps: Sequence[int], first: int = 1) -> Any:
    """A train_step whose gradient is a thousand times too large at some steps; `first` is the number of the first."""
    calls = iter(range(first, 10**6))

    def step(parallel: nn.Module, *arguments: Any) -> StepOutcome:
        factor = 1000.0 if next(calls) in steps else 1.0
        hook = parallel.get_parameter("positions").register_hook(lambda gradient: gradient * factor)
        try:
            return train_step(parallel, *arguments)
        finally:
            hook.remove()

    return step


@pytest.mark.parametrize("optim", ["adam", "muon"])
def test_a_run_leaves_out_spikes_and_resumes_with_the_same_bits(
    optim: str, data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.with_fields(steps=80, evaluate_every=80, checkpoint_every=65, optim=optim, ema_decay=0.9)
    careful = config.with_fields(spike_deviations=8)

    monkeypatch.setattr(training, "train_step", spiking([60, 70]))
    calm, recorder = str(tmp_path / "calm"), Recorder()
    result = train(careful, data, calm, Worker(), recorder)
    assert (result.steps, result.skipped_spikes, result.skipped_steps) == (80, 2, 0)
    assert recorder.values[80]["skipped_spikes"] == 2
    told = [line for line in recorder.lines if "spike" in line]
    assert [line.split(" is left out as a spike: its loss is ")[0] for line in told] == ["step 60", "step 70"]
    assert "the 59 steps before" in told[0]

    def die(step: int) -> None:
        if step == 68:
            raise KilledError

    cut = str(tmp_path / "cut")
    monkeypatch.setattr(training, "train_step", spiking([60, 70]))
    with pytest.raises(KilledError):
        train(careful, data, cut, Worker(), Recorder(), heartbeat=die)
    state = checkpoint.read(checkpoint.folder_of(cut, 65)).state
    assert (state.spikes, len(state.recent)) == (1, 65)
    monkeypatch.setattr(training, "train_step", spiking([60, 70], first=66))
    assert train(careful, data, cut, Worker(), Recorder()).skipped_spikes == 2
    weights, expected = final_weights(cut), final_weights(calm)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_without_the_setting_no_step_is_judged(
    data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train_step", spiking([60]))
    config = config.with_fields(steps=65, evaluate_every=65, checkpoint_every=65)
    recorder, run = Recorder(), str(tmp_path / "run")
    assert train(config, data, run, Worker(), recorder).skipped_spikes == 0
    assert not recorder.lines and "skipped_spikes" not in recorder.values[65]
    assert not checkpoint.read(checkpoint.folder_of(run, 65)).state.recent
