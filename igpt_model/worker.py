"""Which of the workers of a training this process is, and what the workers agree on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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
