"""The optimizer, its learning rate schedule, and the moving average of the weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from igpt_model.config import PretrainConfig
from igpt_model.training.muon import Muon
from igpt_model.worker import Worker

_BETAS = (0.9, 0.95)  # section 3.4 of the paper


def learning_rate(step: int, config: PretrainConfig) -> float:
    """The learning rate of a step: linear warm-up, then cosine decay to 0 at the last step."""
    warmup_steps, steps = config.optimizer.warmup_steps, config.optimizer.steps
    if step < warmup_steps:
        return config.peak_learning_rate * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return config.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def make_optimizer(model: nn.Module, config: PretrainConfig, worker: Worker) -> torch.optim.Optimizer:
    """Fused Adam with the paper's betas, or Muon for the matrices of the blocks; weight decay is for matrices alone."""
    rate, decay = config.peak_learning_rate, config.optimizer.weight_decay
    embeddings = {"positions", "low_positions", "tokens.weight", "class_starts.weight"}
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and name not in embeddings}
    rest = [p for name, p in model.named_parameters() if name not in matrices]
    orthogonal: dict[Tensor, int] = {}
    if config.optimizer.optim == "muon":
        for name in [name for name in matrices if name.startswith("blocks.")]:
            orthogonal[matrices.pop(name)] = 3 if name.endswith(".qkv.weight") else 1  # queries, keys and values
    groups = [{"params": list(matrices.values()), "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=1e-8, fused=True)
    return Muon(orthogonal, adam, worker, lr=rate, weight_decay=decay) if orthogonal else adam


@torch.no_grad()
def update_average(
    average: Sequence[Tensor], weights: Sequence[Tensor], *, decay: float, step: int, applied: Tensor
) -> None:
    """Update an exponential moving average of the weights in place after a step (from 1).

    The decay is at most (1 + step) / (10 + step), so that the initial weights lose their influence quickly. `applied`
    is float32 [], on the weights' device: 0 leaves the average as it is.
    """
    # By its product with 0, so that the host need not wait to know; finite weights then leave every bit as it was.
    share = (1 - min(decay, (1 + step) / (10 + step))) * applied
    torch._foreach_lerp_(_local(average), _local(weights), [share] * len(average))


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This worker's parts of tensors, sharded or not."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
