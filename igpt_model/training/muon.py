"""Muon, the optimizer of Jordan et al. 2024: the singular values of a step of a matrix are all about the same.

The momentum of the gradient is made orthogonal by a few of Newton and Schulz's iterations. Matrices of one shape are
computed together, and the workers share the work. https://kellerjordan.github.io/posts/muon; the length of a step is
that of Liu et al. 2025, about Adam's at the same learning rate: https://arxiv.org/abs/2502.16982.

Shapes: N matrices, M and C the rows and columns of each, R the rows that a worker has, W workers, E matrices that each
worker makes orthogonal.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from igpt_model.worker import Worker

MOMENTUM = "momentum_buffer"
"""The key of what it keeps of each matrix, by which checkpoints tell it from Adam."""
_MOMENTUM = 0.95
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LENGTH = 0.2  # root mean square of the elements of a step at a learning rate of 1
_ROUND = 2**28  # elements of the matrices that are computed together; more of one shape take several rounds


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the blocks and fused Adam for all other weights, as one optimizer.

    Where `found_inf`, float32 [], is 1, a step is left out: weights and moments keep every bit, and nobody waits to
    know.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, matrices: Mapping[Tensor, int], adam: torch.optim.AdamW, worker: Worker, *, lr: float, weight_decay: float
    ) -> None:
        """`matrices` has the weights and of how many matrices each consists, one below the other."""
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay})
        self._matrices, self._adam, self._worker = matrices, adam, worker
        # So that it is one optimizer to the loop, which sets the rates, and to checkpoints, which keep the states.
        self.param_groups.extend(adam.param_groups)
        adam.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all weights."""
        assert closure is None
        self._adam.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._adam.step()
        applied = torch.ones((), device=next(iter(self._matrices)).device)
        if self.found_inf is not None:
            applied -= _local(self.found_inf)
        alike = defaultdict(list)
        for weight, parts in self._matrices.items():
            if weight.grad is not None:
                alike[weight.shape, parts].append(weight)
        world = self._worker.world_size
        for (shape, parts), weights in alike.items():
            together = world * max(1, _ROUND // (shape.numel() * world))
            for begin in range(0, len(weights), together):
                self._update(weights[begin : begin + together], parts, applied)

    def _update(self, weights: Sequence[Tensor], parts: int, applied: Tensor) -> None:
        """Update weights of one shape; not by a bit where `applied` is 0."""
        # What is not finite is replaced, for its product with 0 would not be 0.
        gradients = [torch.where(applied > 0, _local(cast(Tensor, weight.grad)), 0.0) for weight in weights]
        momentum = [_local(self._momentum_of(weight)) for weight in weights]
        torch._foreach_lerp_(momentum, gradients, [(1 - _MOMENTUM) * applied] * len(weights))
        ahead = torch._foreach_lerp(gradients, momentum, _MOMENTUM)  # Nesterov's
        # In the format of fast products; the iteration corrects what is rounded.
        ahead_NRC = torch.stack(ahead).to(torch.bfloat16 if ahead[0].is_cuda else ahead[0].dtype)
        steps_NRC = self._orthogonal(ahead_NRC, weights[0], parts)
        rows, columns = weights[0].shape
        group = self.param_groups[0]
        rate = group["lr"] * applied
        length = _LENGTH * max(rows // parts, columns) ** 0.5
        for weight, step_RC in zip(weights, steps_NRC, strict=True):
            local_RC = _local(weight)
            local_RC.mul_(1 - rate * group["weight_decay"]).sub_(step_RC.to(local_RC.dtype) * (rate * length))

    def _momentum_of(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(weight)
        return cast(Tensor, state[MOMENTUM])

    def _orthogonal(self, local_NRC: Tensor, like: Tensor, parts: int) -> Tensor:
        """This worker's rows of matrices that were made orthogonal, given its rows of them; `like` is one's weight."""
        if self._worker.world_size == 1:
            return orthogonal(local_NRC, parts)
        if isinstance(like, DTensor):
            return self._of_sharded(local_NRC, like.shape[0], parts)
        return self._of_whole(local_NRC, parts)

    def _of_whole(self, matrices_NMC: Tensor, parts: int) -> Tensor:
        """Of matrices that all workers have: each worker computes some of them, and all get all."""
        world, rank, count = self._worker.world_size, self._worker.rank, len(matrices_NMC)
        each = -(-count // world)
        filled_NMC = matrices_NMC.new_zeros(world * each, *matrices_NMC.shape[1:])
        filled_NMC[:count] = matrices_NMC
        own_EMC = orthogonal(filled_NMC[rank * each : (rank + 1) * each], parts)
        dist.all_gather_into_tensor(filled_NMC, own_EMC.contiguous())
        return filled_NMC[:count]

    def _of_sharded(self, shards_NRC: Tensor, rows: int, parts: int) -> Tensor:
        """Of matrices of which each worker has some rows: it gets some of them whole, and sends their rows back."""
        world, (count, own_rows, columns) = self._worker.world_size, shards_NRC.shape
        each, most_rows = -(-count // world), -(-rows // world)  # the last workers may have fewer rows, or none
        filled_NRC = shards_NRC.new_zeros(world * each, most_rows, columns)
        filled_NRC[:count, :own_rows] = shards_NRC
        shards_WERC = filled_NRC.new_empty(world, each, most_rows, columns)
        dist.all_to_all_single(shards_WERC, filled_NRC)
        own_EMC = shards_WERC.transpose(0, 1).reshape(each, world * most_rows, columns)
        own_EMC[:, :rows] = orthogonal(own_EMC[:, :rows], parts)
        shards_WERC = own_EMC.view(each, world, most_rows, columns).transpose(0, 1).contiguous()
        dist.all_to_all_single(filled_NRC, shards_WERC)
        return filled_NRC[:count, :own_rows]


def orthogonal(matrices_NMC: Tensor, parts: int = 1) -> Tensor:
    """Matrices with the singular vectors of the given ones and singular values of about 1; where all are 0, zeros.

    Each may consist of `parts` matrices of one size, one below the other, which are made orthogonal on their own.
    """
    count, rows, columns = matrices_NMC.shape
    made_NMC = matrices_NMC.reshape(count * parts, rows // parts, columns)
    tall = rows // parts > columns
    if tall:  # products over the longer side are smaller
        made_NMC = made_NMC.mT
    made_NMC = made_NMC / torch.linalg.vector_norm(made_NMC, dim=(1, 2), keepdim=True).clamp(min=1e-30)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        products_NMM = made_NMC @ made_NMC.mT
        products_NMM = torch.baddbmm(products_NMM, products_NMM, products_NMM, beta=b, alpha=c)
        made_NMC = torch.baddbmm(made_NMC, products_NMM, made_NMC, beta=a)
    return (made_NMC.mT if tall else made_NMC).reshape(count, rows, columns)


def _local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor, sharded or not."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
