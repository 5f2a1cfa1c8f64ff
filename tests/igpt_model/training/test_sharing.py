"""Two workers with a part of the weights each (FSDP2) do what two with all of them do (DDP), and hold less."""

import json
from typing import Any

import pytest

from tests.igpt_model.training.workers import run_workers


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """What sharing_workers.py prints."""
    printed, errors = run_workers(2, f"{__package__}.sharing_workers")
    assert "Mismatch dtype" not in printed + errors
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def _skipping(rows: list[dict[str, Any]], optim: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["part"] == "skipping" and row["optim"] == optim]


@pytest.mark.parametrize("optim", ["adam", "muon"])
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_step_that_is_not_finite_on_one_worker_is_left_out_by_the_optimizers_of_all(
    parallelism: str, optim: str, rows: list[dict[str, Any]]
) -> None:
    """The outcome is read only when the step is queued: reading it earlier raises in the workers."""
    (row,) = [row for row in _skipping(rows, optim) if row["parallelism"] == parallelism]
    assert row["good"] and row["good again"]
    assert row["skipped"] == [{"poison": poison, "finite": False, "changed": []} for poison in ("loss", "gradient")]
    kinds = {name.split(".")[0] for name in row["tensors"]}
    assert kinds >= {"weights", "trained", "optimizer"}, "the average, the weights, and what the optimizer keeps"
    moved = {name for name in row["changed again"] if not name.startswith("optimizer")}
    assert moved == {name for name in row["tensors"] if name.split(".")[0] in ("weights", "trained")}


@pytest.mark.parametrize("optim", ["adam", "muon"])
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_spike_on_one_worker_is_left_out_by_all(parallelism: str, optim: str, rows: list[dict[str, Any]]) -> None:
    (row,) = [
        row for row in rows if row["part"] == "spikes" and (row["optim"], row["parallelism"]) == (optim, parallelism)
    ]
    (plain, moved), (spike, moved_by_spike), (plain_again, moved_again) = row["changed"]
    assert (plain, spike, plain_again) == ([False, False], [True, True], [False, False])
    assert moved_by_spike == 0 < min(moved, moved_again)


@pytest.mark.parametrize("optim", ["adam", "muon"])
def test_skipping_leaves_both_ways_at_the_same_weights(optim: str, rows: list[dict[str, Any]]) -> None:
    ddp, fsdp = _skipping(rows, optim)
    assert fsdp["weights"] == pytest.approx(ddp["weights"], abs=1e-3)


@pytest.mark.parametrize("kind", ["plain", "masked", "by class", "upscaling"])
def test_sharded_weights_start_with_the_bits_of_a_whole_model_that_nobody_had(
    kind: str, rows: list[dict[str, Any]]
) -> None:
    (row,) = [row for row in rows if row["part"] == "starting" and row["kind"] == kind]
    assert row["same"] and row["sharded"] and row["never_whole"]
    assert row["weights"] > 40


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_blocks_are_gathered_in_the_format_of_the_products(precision: str, rows: list[dict[str, Any]]) -> None:
    ddp, fsdp = (row for row in rows if row["part"] == "gathering" and row["precision"] == precision)
    assert ddp["gathered"] == []
    # Forward: what is outside of the blocks, then three blocks; the same again in the backward pass.
    assert sorted(fsdp["gathered"]) == sorted(2 * ["torch.float32", *3 * [f"torch.{precision}"]])
    assert fsdp["summed"] == fsdp["stream"] == fsdp["stored"] == ["torch.float32"]
    assert fsdp["loss"] == pytest.approx(ddp["loss"], abs=1e-6 if precision == "float32" else 1e-3)
    assert fsdp["norm"] == pytest.approx(ddp["norm"], rel=1e-5 if precision == "float32" else 1e-3)
