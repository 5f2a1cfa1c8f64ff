"""Checkpoints are complete or ignored, independent of the number of ranks, and training survives store errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint
from igpt_model.runs.open_model import load_model
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder

ROOT = Path(__file__).parents[3]


def files_of(run: str, step: int) -> dict[str, Path]:
    return {path.name: path for path in Path(checkpoint.folder_of(run, step)).iterdir()}


LOSSES = st.dictionaries(st.integers(1, 99), st.none() | st.sampled_from([1.0, 1.5, 2.0]), min_size=1)


@given(LOSSES, st.integers(1, 4), st.integers(0, 3), st.sampled_from([0, 10, 33]))
def test_the_newest_the_best_and_the_regular_are_kept(
    losses: dict[int, float | None], last: int, best: int, every: int
) -> None:
    regular = {step for step in losses if every and step % every == 0}
    with_regular = set(checkpoint.to_prune(losses, keep_last=last, keep_best=best, keep_every=every))
    gone = set(checkpoint.to_prune(losses, keep_last=last, keep_best=best))
    assert with_regular == gone - regular
    kept = set(losses) - gone
    assert set(sorted(losses)[-last:]) <= kept
    measured = sorted(loss for loss in losses.values() if loss is not None)
    assert sorted(losses[step] or 9 for step in kept)[:best] == (measured + [9.0] * best)[: min(best, len(kept))]
    assert len(kept) <= last + best


def test_the_newest_and_the_best_are_what_is_left_of_a_run(
    data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    # With a learning rate this large the loss rises again after a good start.
    config = config.with_fields(steps=60, learning_rate=0.02, evaluate_every=10, keep_last=2, keep_best=1)
    recorder = Recorder()
    train(config, data, run, Worker(), recorder)
    losses = {
        step: values["validation_loss"] for step, values in recorder.values.items() if "validation_loss" in values
    }
    best = min(losses, key=lambda step: losses[step])
    assert checkpoint.marked_steps(run) == sorted({best, 50, 60})
    files = [Path(file.url).parent.name for file in objects.list_files(f"{run}/checkpoints")]
    assert {int(name) for name in files} == {best, 50, 60}


@pytest.mark.parametrize("name", ["weights-00000.safetensors", "optimizer-00000.safetensors", "index.json"])
def test_a_truncated_file_costs_one_checkpoint_and_a_warning(
    name: str, data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    expected = train(config, data, run, Worker(), Recorder())
    bits = {key: value.clone() for key, value in load_model(run).model.state_dict().items()}
    objects.delete(f"{run}/result.json")
    file = files_of(run, 30)[name]
    file.write_bytes(file.read_bytes()[:-100])
    before = load_model(checkpoint.folder_of(run, 30 if name.startswith("optimizer") else 20)).model.head.weight
    assert torch.equal(load_model(run).model.head.weight, before)  # opening only the model falls back too
    recorder = Recorder()
    result = train(config, data, run, Worker(), recorder)
    assert len(recorder.lines) == 1 and "step 30 is damaged" in recorder.lines[0]
    assert min(recorder.values) > 20
    assert result.validation_loss == expected.validation_loss
    assert all(torch.equal(value, bits[key]) for key, value in load_model(run).model.state_dict().items())


def test_every_checkpoint_damaged_is_an_error_and_not_a_fresh_start(
    data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    train(config, data, run, Worker(), Recorder())
    for step in checkpoint.marked_steps(run):
        files_of(run, step)["optimizer-00000.safetensors"].write_bytes(b"damaged")
    with pytest.raises(IgptError, match="every checkpoint is damaged"):
        train(config.with_fields(steps=40), data, run, Worker(), Recorder())
    load_model(run)  # the model itself is not damaged


def test_without_its_index_file_a_checkpoint_is_ignored(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train(config, data, run, Worker(), Recorder())
    files_of(run, 30)["index.json"].unlink()
    assert 30 not in checkpoint.marked_steps(run)
    assert min(_train_again(config, data, run).values) > 20


def _train_again(config: PretrainConfig, data: Snapshot, run: str) -> Recorder:
    objects.delete(f"{run}/result.json")
    recorder = Recorder()
    train(config, data, run, Worker(), recorder)
    return recorder


def test_checkpoints_of_an_earlier_version_are_refused_in_a_line(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    objects.write_bytes(f"{run}/checkpoints/00000010.json", b"{}")
    with pytest.raises(IgptError, match="of an earlier version"):
        checkpoint.marked_steps(run)


def test_a_model_is_read_without_torch(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train(config, data, run, Worker(), Recorder())
    step = checkpoint.folder_of(run, 30)
    index = json.loads((Path(step) / "index.json").read_text())
    assert index["state"]["cursor"] == 30 * 16
    code = f"""
import numpy, sys
from safetensors.numpy import load_file
print(load_file({str(files_of(run, 30)["weights-00000.safetensors"])!r})["weights.head.weight"].sum())
assert "torch" not in sys.modules
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert float(printed) == pytest.approx(load_model(step).model.head.weight.sum().item(), abs=1e-4)


def test_a_preemption_notice_saves_one_checkpoint_at_once(
    data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    config = config.with_fields(checkpoint_every=30, keep_last=3)
    steps_after: list[list[int]] = []
    train(
        config,
        data,
        run,
        Worker(),
        Recorder(),
        heartbeat=lambda step: steps_after.append(checkpoint.marked_steps(run)),
        leaving=lambda: True,
    )
    assert steps_after[9] == [] and steps_after[10] == steps_after[28] == [
        10
    ]  # written before the next step, and not again
    assert checkpoint.marked_steps(run) == [10, 30]
