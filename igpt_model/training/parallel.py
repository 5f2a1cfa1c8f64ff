"""Precision, compilation, activation recomputation and data parallelism of a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from igpt_model.config import PretrainConfig
from igpt_model.model.config import ModelConfig
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


def is_sharded(config: PretrainConfig, worker: Worker) -> bool:
    """Whether each worker has a part of the weights (fsdp) and not all of them."""
    return worker.world_size > 1 and config.execution.parallelism == "fsdp"


def make_model(model_config: ModelConfig, config: PretrainConfig, worker: Worker, *, trained: bool = True) -> ImageGPT:
    """A new model on the worker's device with its blocks prepared; fsdp shards its weights.

    Its initial values are those of ImageGPT(model_config), bit for bit, also of a sharded model, which is never whole.
    """
    if not is_sharded(config, worker):
        model = ImageGPT(model_config).to(worker.device).requires_grad_(trained)
        prepare_blocks(model, config)
        return model
    with torch.device("meta"):
        model = ImageGPT(model_config).requires_grad_(trained)
    prepare_blocks(model, config)
    shard(model, worker, config)
    model.to_empty(device=worker.device)
    _draw_sharded(model)
    return model


def parallelize(model: ImageGPT, worker: Worker, config: PretrainConfig) -> nn.Module:
    """The module to train: with ddp the model is wrapped, on several workers."""
    if worker.world_size == 1 or is_sharded(config, worker):
        return model
    devices = [worker.device] if worker.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: ImageGPT, worker: Worker, config: PretrainConfig) -> None:
    """Shard every weight over the workers; the weights of a block are gathered while it is computed (FSDP2).

    In bfloat16 a block's weights are gathered in it, half the bytes. Products round them to that anyway, of which a
    block consists but for its gains; gradients are summed in float32, in which the residual stream stays too.
    """
    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    policy = MixedPrecisionPolicy()
    if config.training_precision == "bfloat16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Reshard the root too: by default its weights stay gathered after a forward pass without a backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


@torch.no_grad()
def _draw_sharded(model: ImageGPT) -> None:
    """Draw the initial weights, one whole weight at a time in host memory, of which this worker keeps its part."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            torch.empty(module.weight.shape).normal_()  # what PyTorch draws for it first, and ImageGPT replaces
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    for weight, std in model.initial_deviations():
        copy_whole(weight, nn.init.normal_(torch.empty(weight.shape), std=std))
    nn.init.zeros_(model.head.weight)


@torch.no_grad()
def copy_whole(weight: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, the same on every worker, into a weight, sharded or not."""
    if isinstance(weight, DTensor):
        whole = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
    weight.copy_(whole)
