"""Steps whose loss or gradient lies far above those of the steps before: they are left out of a training, on demand.

The rule is that of OLMo-core's SkipStepAdamW (https://github.com/allenai/OLMo-core).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from igpt_model.worker import Worker

WINDOW = 100
"""Steps with which a step is compared."""
_LEAST = WINDOW // 2  # steps; with fewer before it, a step is not judged

Value = tuple[float, float]
"""The loss and the gradient norm of a step."""


class SpikeGuard:
    """The losses and gradient norms of the last steps, on the device of a training: nobody waits to judge by them.

    A step is a spike if its loss or its norm is more than `deviations` standard deviations above the mean of the last
    WINDOW steps. Spikes count among the last steps for those that follow, so that a training whose loss has risen for
    good goes on: of equal spikes, some three in a row are left out at most. Steps that are not finite do not count.
    """

    def __init__(self, deviations: float, recent: Sequence[Sequence[float]], worker: Worker) -> None:
        """`recent` has the loss and the gradient norm of each of the last steps, the newest last."""
        self._deviations, self._worker = deviations, worker
        self._last_2N = torch.full((2, WINDOW), math.nan, dtype=torch.float64, device=worker.device)
        if recent:
            values_2N = torch.tensor(recent[-WINDOW:], dtype=torch.float64).T
            self._last_2N[:, -values_2N.shape[1] :] = values_2N.to(worker.device)

    def judge(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Whether a step is a spike, bool [], and keep its values for the next ones. The same on every worker."""
        values_2 = torch.stack([loss.detach(), gradient_norm.detach()]).to(torch.float64)
        finite = values_2.isfinite().all()
        limits_2 = _limits(self._last_2N, self._deviations)
        spike = finite & (values_2 > limits_2).any()  # comparing with NaN is False
        # Workers with weights of their own may come to norms that differ in the last bits, but must do the same.
        agreed = self._worker.mean(spike.float()) > 0
        shifted_2N = torch.cat([self._last_2N[:, 1:], values_2[:, None]], dim=1)
        self._last_2N = torch.where(finite, shifted_2N, self._last_2N)
        return agreed


def _limits(last_2N: Tensor, deviations: float) -> Tensor:
    """The highest loss and norm that are no spikes, [2]; NaN with fewer than _LEAST steps."""
    known_2N = last_2N.isfinite()
    count_2 = known_2N.sum(dim=1)
    mean_2 = last_2N.nanmean(dim=1)
    squares_2 = torch.where(known_2N, (last_2N - mean_2[:, None]).square(), 0.0).sum(dim=1)
    limit_2 = mean_2 + deviations * (squares_2 / (count_2 - 1).clamp(min=1)).sqrt()
    return torch.where(count_2 >= _LEAST, limit_2, math.nan)


def told(step: int, value: Value, recent: Sequence[Sequence[float]]) -> str:
    """The line that tells of a spike at a step (from 1), after steps with these values."""
    means = [sum(values) / len(recent) for values in zip(*recent, strict=True)]
    return (
        f"step {step} is left out as a spike: its loss is {value[0]:.4g} and the norm of its gradient {value[1]:.4g}; "
        f"the {len(recent)} steps before have {means[0]:.4g} and {means[1]:.4g} on average"
    )
