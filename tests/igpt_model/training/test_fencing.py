"""A run whose lease was taken over by another process completes no more checkpoints and fails with one line."""

import json
from pathlib import Path

import pytest
import torch

from igpt_model.runs import checkpoint
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.store import objects
from pipeline.store.lease import Fence, LeaseLostError
from tests.igpt_model.training.test_loop import Recorder, digits_snapshot, short_training

pytestmark = pytest.mark.usefixtures("without_cluster")


def fence(folder: str, term: int) -> Fence:
    """The fence of a process that has just acquired the lease."""
    holder = f"holder of term {term}"
    objects.write_bytes(objects.join(folder, "lease", f"{term:08d}.json"), json.dumps({"id": holder}).encode())
    return Fence(folder=folder, term=term, holder=holder)


def test_a_run_without_its_lease_completes_and_prunes_no_checkpoint(tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path)
    config = short_training(data, tmp_path).with_fields(checkpoint_every=10, keep_last=1, keep_best=0)
    run = str(tmp_path / "runs" / "fenced")
    first, takeovers = fence(run, 1), []

    def heartbeat(step: int) -> None:
        if step == 15:
            takeovers.append(fence(run, 2))

    worker = Worker(rank=0, world_size=1, device=torch.device("cpu"))
    with pytest.raises(LeaseLostError, match="another process took over"):
        train(config, data, run, worker, Recorder(), heartbeat=heartbeat, fence=first)
    assert checkpoint.marked_steps(run) == [10]
    result = train(config, data, run, worker, Recorder(), fence=takeovers[0])
    assert result.restarts == 1 and checkpoint.marked_steps(run) == [30]
