"""One optimizer step on a global batch, and the loss on a whole split; loop.py runs them."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.losses import image_losses
from igpt_model.training.parallel import autocast
from igpt_model.worker import Worker


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """The loss and gradient norm of a step, equal on every worker."""

    loss: float
    """Nats per pixel, the mean over the global batch."""
    gradient_norm: float
    """Before clipping."""

    @property
    def finite(self) -> bool:
        """Whether the weights were updated; a step with a loss or gradient that is not finite is skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def losses(model: nn.Module, inputs: Inputs) -> Tensor:
    """The loss of each image, [B], in nats per pixel."""
    logits_BTK = model(inputs.tokens_BT, inputs.condition, inputs.masked_BT)
    return image_losses(logits_BTK, inputs.tokens_BT, inputs.masked_BT)


def settle(parallel: nn.Module, inputs: Inputs, config: PretrainConfig, worker: Worker) -> None:
    """Run one backward pass before the first step and discard its gradient.

    DDP rebuilds its gradient buckets after the first backward pass, and with three or more workers the last bits of the
    sums depend on the buckets. Without this, a resumed run would differ from an uninterrupted one.
    """
    if isinstance(parallel, DistributedDataParallel):
        with autocast(config, worker.device):
            loss = losses(parallel, inputs).sum()
        loss.backward()
        parallel.zero_grad(set_to_none=True)


def train_step(
    parallel: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Callable[[], Inputs]],
    rate: float,
    config: PretrainConfig,
    worker: Worker,
) -> StepOutcome:
    """Update the weights with the gradient of the mean loss over the global batch.

    `micro_batches` produce this worker's images; they may differ in size, also between workers, and every image has
    the same weight.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=worker.device)
    for number, make_inputs in enumerate(micro_batches, 1):
        inputs = make_inputs()
        alone = isinstance(parallel, DistributedDataParallel) and number < len(micro_batches)
        if isinstance(parallel, FSDPModule):
            parallel.set_requires_gradient_sync(number == len(micro_batches))
        with parallel.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with autocast(config, worker.device):
                loss = losses(parallel, inputs).sum()
            # Gradients are averaged over workers, so scale by their number to get the mean over the global batch.
            loss = loss * (worker.world_size / config.optimizer.global_batch)
            loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(parallel.parameters(), config.optimizer.gradient_clip)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    outcome = StepOutcome(loss=float(worker.mean(total)), gradient_norm=float(norm))
    if outcome.finite:
        optimizer.step()
    return outcome


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Inputs], config: PretrainConfig, worker: Worker) -> float:
    """The mean loss over a split, given this worker's batches of it; equal on every worker."""
    totals = torch.zeros(2, dtype=torch.float64, device=worker.device)
    model.eval()
    for inputs in batches:
        with autocast(config, worker.device):
            loss = losses(model, inputs).double().sum()
        totals += torch.stack([loss, torch.full_like(loss, len(inputs.tokens_BT))])
    model.train()
    total, images = worker.mean(totals).tolist()
    return total / images
