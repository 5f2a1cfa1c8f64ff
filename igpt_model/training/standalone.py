"""Worker setup and output of `python -m igpt_model.train CONFIG.yaml [FIELD=VALUE]...`.

Does not need Ray, MLflow, Prefect or pydantic. Metrics go to standard output, checkpoints and result.json to the run's
folder, where `igpt pretrain` with the same config finds them. torchrun sets the number of workers and overrides
`workers`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from igpt_model.config import PretrainConfig
from igpt_model.worker import Worker, collective_timeout
from pipeline.errors import IgptError

USAGE = "usage: python -m igpt_model.train CONFIG.yaml [FIELD=VALUE]...  (the fields of `igpt config pretrain`)"


class Printer:
    """A listener that prints metrics and warnings, one per line."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        print(f"step {step}  {shown}", flush=True)

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def saved(self, step: int) -> None:
        """Print nothing."""


@contextmanager
def worker(config: PretrainConfig) -> Iterator[Worker]:
    """This process as a worker of torchrun, or as the only worker. Raises IgptError when use_gpu finds no GPU."""
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
    timeout = collective_timeout(config.execution.hang_seconds)
    dist.init_process_group("nccl" if config.execution.use_gpu else "gloo", timeout=timeout)
    try:
        yield Worker(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)
    finally:
        dist.destroy_process_group()
