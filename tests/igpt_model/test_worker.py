"""What workers do together: one result, one error and one mean for all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from igpt_model.worker import Worker

ROOT = Path(__file__).parents[2]
# Two processes, forked once PyTorch is loaded; each prints what it got.
TWO = """
import json, os, sys
import torch
import torch.distributed as dist
from igpt_model.worker import Worker

def tried(function):
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def refuse():
    raise ValueError("refused")

def work(rank):
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
    worker = Worker(rank=rank, world_size=2)
    outcome = [
        worker.mean(torch.tensor(float(rank))).item(),
        tried(lambda: worker.from_first(lambda: f"made by {rank}")),
        tried(lambda: worker.from_first(refuse)),
        repr(worker.first_error(None)),
        repr(worker.first_error(ValueError("of rank 1") if rank else None)),
        repr(worker.first_error(ValueError(f"of rank {rank}"))),
    ]
    dist.destroy_process_group()
    return outcome

other = os.fork()
os.write(1, (json.dumps(work(1 if other else 0)) + "\\n").encode())
if other:
    sys.exit(os.waitpid(other, 0)[1])
"""


def test_two_workers_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO, str(tmp_path / "meet")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = map(json.loads, done.stdout.splitlines())
    errors = ["None", "ValueError('of rank 1')", "ValueError('of rank 0')"]
    assert one == two == [0.5, "made by 0", "ValueError: refused", *errors]


def test_one_worker_needs_no_group() -> None:
    worker = Worker()
    assert worker.mean(torch.tensor(3.0)).item() == 3
    assert worker.from_first(lambda: "made") == "made"
    with pytest.raises(ZeroDivisionError):
        worker.from_first(lambda: 1 / 0)
    error = ValueError()
    assert worker.first_error(error) is error and worker.first_error(None) is None
