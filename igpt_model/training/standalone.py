"""What `python -m igpt_model.train CONFIG.yaml [FIELD=VALUE]...` needs beside the training: worker and output.

Without Ray, MLflow, Prefect and pydantic. Metrics go to standard output, checkpoints and result.json to the run's
folder, where `igpt pretrain` with the same config looks for them. torchrun says how many workers there are, whatever
`workers` is.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from igpt_model.config import PretrainConfig
from igpt_model.worker import Worker
from pipeline.errors import IgptError

USAGE = "usage: python -m igpt_model.train CONFIG.yaml [FIELD=VALUE]...  (the fields of `igpt config pretrain`)"


class Printer:
    """Prints what a training tells, a line a time."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        print(f"step {step}  {shown}", flush=True)

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def saved(self, step: int) -> None:
        """Say nothing: checkpoints are written in silence."""


@contextmanager
def worker(config: PretrainConfig) -> Iterator[Worker]:
    """Which worker of torchrun this process is, or the only one. Raises IgptError when there is no GPU to use."""
    if config.execution.use_gpu and not torch.cuda.is_available():
        raise IgptError("use_gpu is set and PyTorch sees no GPU: install the driver, or set use_gpu to false")
    torch.set_num_threads(config.execution.cpus_per_worker)
    device = torch.device("cpu")
    if config.execution.use_gpu:
        device = torch.device("cuda", dist.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        yield Worker(device=device)
        return
    dist.init_process_group("nccl" if config.execution.use_gpu else "gloo")
    try:
        yield Worker(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)
    finally:
        dist.destroy_process_group()
