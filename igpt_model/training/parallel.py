"""Precision, compilation, activation recomputation and data parallelism of a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from igpt_model.config import PretrainConfig
from igpt_model.model.network import ImageGPT
from igpt_model.worker import Worker


def autocast(config: PretrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for a forward pass in the config's precision."""
    if config.training_precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def allow_tf32(config: PretrainConfig, device: torch.device) -> None:
    """Let a GPU compute float32 products in TF32, unless precision is float32; for the whole process."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = config.training_precision != "float32"


def prepare_blocks(model: ImageGPT, config: PretrainConfig) -> None:
    """Recompute activations in the backward pass and compile the blocks, if configured. Weights keep their names.

    The blocks are identical, so they share one compilation; compiling the whole model would take `layers` times as
    long.
    """
    for block in model.layers:
        if config.execution.activation_checkpointing:
            block.forward = _recomputed(block.forward)  # type: ignore[method-assign]
        if config.is_compiled:
            block.compile()


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward pass whose activations are computed again in the backward pass.

    A function of its own, for torch.compile steps over a bound `checkpoint` and would compile nothing.
    """

    def recomputed(*inputs: Any) -> Tensor:
        return checkpoint(forward, *inputs, use_reentrant=False)

    return recomputed


def parallelize(model: ImageGPT, worker: Worker, config: PretrainConfig) -> nn.Module:
    """Wrap the model for data-parallel training: replicated (ddp) or sharded (fsdp).

    With fsdp the model is modified in place: its weights become sharded tensors.
    """
    if worker.world_size == 1:
        return model
    if config.execution.parallelism == "fsdp":
        shard(model, worker)
        return model
    devices = [worker.device] if worker.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: ImageGPT, worker: Worker) -> None:
    """Shard every weight over the workers; the weights of a block are gathered while it is computed (FSDP2)."""
    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    # Reshard the root too: by default its weights stay gathered after a forward pass without a backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
