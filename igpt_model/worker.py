"""This process's rank among the training workers, and collectives over the workers."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


_DEFAULT_TIMEOUT = timedelta(minutes=30)
_AFTER_HANG = timedelta(minutes=2)  # for the watchdog's report of the stacks, which takes up to 40 s


def collective_timeout(hang_seconds: float) -> timedelta:
    """How long collectives wait for the other workers.

    Longer than the watchdog, which reports the stacks: NCCL's own time-out of 10 minutes would end the process before.
    """
    return max(_DEFAULT_TIMEOUT, timedelta(seconds=hang_seconds) + _AFTER_HANG)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The rank and device of this process, and collectives that every worker must call together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over the workers."""
        if self.world_size > 1:
            dist.all_reduce(value)
            value = value / self.world_size
        return value

    def from_first(self, make: Callable[[], Result]) -> Result:
        """Call `make` on rank 0 and return its result, or raise its exception, on every worker."""
        if self.world_size == 1:
            return make()
        result_and_error: list[Any] = [None, None]
        if self.rank == 0:
            try:
                result_and_error[0] = make()
            except Exception as error:  # noqa: BLE001 (raised on every worker below)
                result_and_error[1] = error
        dist.broadcast_object_list(result_and_error, device=self.device)
        if result_and_error[1] is not None:
            raise result_and_error[1]
        return result_and_error[0]

    def first_error(self, error: Exception | None) -> Exception | None:
        """The error of the lowest rank that has one, so that all workers handle the same error."""
        if self.world_size == 1:
            return error
        errors: list[Exception | None] = [None] * self.world_size
        dist.all_gather_object(errors, error)
        return next((rank_error for rank_error in errors if rank_error is not None), None)
