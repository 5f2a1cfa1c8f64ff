"""How a model is executed: on which worker, in which number format, compiled, and side by side with other workers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from igpt_model.config import PretrainConfig
from igpt_model.model import ImageGPT

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Which of the workers this process is, and where it computes."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over the workers, which all must ask for it."""
        if self.world_size > 1:
            dist.all_reduce(value)
            value = value / self.world_size
        return value

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first worker makes, or the exception that it raises; all must ask for it."""
        if self.world_size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except Exception as error:  # noqa: BLE001 (raised on every worker)
                box[1] = error
        dist.broadcast_object_list(box, device=self.device)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def first_error(self, error: Exception | None) -> Exception | None:
        """The error of the first worker that has one, so that all do the same about it; all must ask for it."""
        if self.world_size == 1:
            return error
        errors: list[Exception | None] = [None] * self.world_size
        dist.all_gather_object(errors, error)
        return next((each for each in errors if each is not None), None)


def autocast(config: PretrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass in the config's precision."""
    if config.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def prepare_blocks(model: ImageGPT, config: PretrainConfig) -> None:
    """Let the blocks forget their activations and compile them, as the config says. Weights keep their names.

    Blocks are alike, so compiling each costs one compilation, where the whole model would take as many times longer as
    it has layers.
    """
    for block in model.layers:
        if config.activation_checkpointing:
            block.forward = _recomputed(block.forward)  # type: ignore[method-assign]
        if config.compile:
            block.compile()


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward pass whose activations are computed again in the backward pass.

    A function of its own, for torch.compile steps over a bound `checkpoint` and would compile nothing.
    """

    def recomputed(*inputs: Any) -> Tensor:
        return checkpoint(forward, *inputs, use_reentrant=False)

    return recomputed


def parallelize(model: ImageGPT, worker: Worker, config: PretrainConfig) -> nn.Module:
    """The model as the workers train it side by side: gradients averaged, and with fsdp each worker with its part.

    With fsdp the given model itself becomes that: its weights are sharded tensors from now on.
    """
    if worker.world_size == 1:
        return model
    if config.parallelism == "fsdp":
        shard(model, worker)
        return model
    devices = [worker.device] if worker.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: ImageGPT, worker: Worker) -> None:
    """Leave each worker its part of every weight; a block has all of its own while it is computed (FSDP2)."""
    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    # The outermost too, which would keep its weights whole after a forward pass that no backward pass follows.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
