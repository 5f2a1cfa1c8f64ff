"""One optimizer step on a global batch; loop.py runs them."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.losses import image_losses
from igpt_model.training.parallel import autocast
from igpt_model.training.spikes import SpikeGuard
from igpt_model.worker import Worker


class StepOutcome:
    """The loss and gradient norm of a step, equal on every worker. On a GPU, reading them waits for the step.

    `applied` does not wait: on the device, float32 [], 1 if the weights were updated and 0 if the step was skipped.
    """

    def __init__(self, loss: Tensor, gradient_norm: Tensor, spike: Tensor | None = None) -> None:
        """`spike`, bool [], tells that the step is left out although it is finite."""
        self.applied = (loss.isfinite() & gradient_norm.isfinite()).float()
        if spike is not None:
            self.applied *= ~spike
        values_3 = torch.stack([loss.detach().float(), gradient_norm.detach().float(), self.applied])
        self._done: torch.cuda.Event | None = None
        if values_3.is_cuda:
            # Copied here, with an event, so that a reader waits for this step and not for those queued after it.
            on_host_3 = torch.empty_like(values_3, device="cpu", pin_memory=True)
            on_host_3.copy_(values_3, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
            values_3 = on_host_3
        self._values_3 = values_3

    @cached_property
    def _read(self) -> tuple[float, float, float]:
        if self._done is not None:
            self._done.synchronize()
        loss, norm, applied = self._values_3.tolist()
        return loss, norm, applied

    @property
    def loss(self) -> float:
        """Nats per pixel, the mean over the global batch."""
        return self._read[0]

    @property
    def gradient_norm(self) -> float:
        """Before clipping."""
        return self._read[1]

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite; a step where they are not is skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    @property
    def is_spike(self) -> bool:
        """Whether the step is finite and was skipped as a spike."""
        return self.finite and not self._read[2]


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
    spikes: SpikeGuard | None = None,
) -> StepOutcome:
    """Update the weights with the gradient of the mean loss over the global batch.

    `micro_batches` produce this worker's images; they may differ in size, also between workers, and every image has
    the same weight. With `spikes`, a step that it judges to be one is skipped. A GPU may still be at work when the
    outcome is returned.
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
    loss = worker.mean(total)
    outcome = StepOutcome(loss, norm, spikes.judge(loss, norm) if spikes else None)
    # The optimizer itself leaves out a step, so that nobody waits for the loss before the next one.
    skipped = 1.0 - outcome.applied
    weight = next(parallel.parameters())
    if isinstance(weight, DTensor):  # beside sharded weights, the optimizer takes no plain tensor
        skipped = DTensor.from_local(skipped, weight.device_mesh, [Replicate()], run_check=False)
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    return outcome
