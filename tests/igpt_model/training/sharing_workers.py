"""What torchrun's two workers come to that share a model: lines of JSON for test_sharing.py."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.network import UNCONDITIONAL, ImageGPT
from igpt_model.training import parallel as parallelism
from igpt_model.training import step as training_step
from igpt_model.training.spikes import SpikeGuard
from igpt_model.training.step import StepOutcome, losses, train_step
from igpt_model.training.train_state import Learner
from igpt_model.worker import Worker
from tests.igpt_model.model.test_network import BY_CLASS, MASKED, SMALL, UPSCALING, make, some_tokens

CONFIG = PretrainConfig.from_fields(runs="r", preset="tiny", global_batch=8, ema_decay=0.9, seed=7)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def tell(worker: Worker, **row: Any) -> None:
    if worker.rank == 0:
        print(json.dumps(row), flush=True)


@contextmanager
def poisoned(kind: str, rank: int, worker: Worker) -> Iterator[None]:
    """Within the block, the loss or the gradient of one worker is not finite, or its loss far too high."""
    plain = losses

    def spoilt(model: nn.Module, inputs: Inputs) -> Tensor:
        loss_B = plain(model, inputs)
        if worker.rank == rank and kind == "spike":
            return loss_B * 100
        if worker.rank == rank and kind == "loss":
            return loss_B * float("inf")
        if worker.rank == rank and kind == "gradient":
            loss_B.register_hook(lambda gradient: gradient * float("nan"))
        return loss_B

    with mock.patch.object(training_step, "losses", spoilt):
        yield


def skipping(worker: Worker) -> None:
    """Skip steps that are not finite on one worker, without reading an outcome before all is queued."""
    share = some_tokens(8).chunk(worker.world_size)[worker.rank]
    inputs = Inputs(tokens_BT=share, condition=UNCONDITIONAL, masked_BT=None)
    for optim, kind in product(("adam", "muon"), ("ddp", "fsdp")):
        config = CONFIG.with_fields(parallelism=kind, optim=optim)
        learner = Learner(SMALL, config, worker)
        stepped = 0

        def state(learner: Learner = learner) -> dict[str, Tensor]:
            return {name: whole(tensor).clone() for name, tensor in learner.tensors().items()}

        def step(learner: Learner = learner, config: PretrainConfig = config) -> StepOutcome:
            nonlocal stepped
            stepped += 1
            unread = mock.PropertyMock(side_effect=AssertionError("the outcome is read before the step is queued"))
            with mock.patch.object(StepOutcome, "_read", unread):
                outcome = train_step(learner.parallel, learner.optimizer, [lambda: inputs], 0.01, config, worker)
                learner.follow(stepped, outcome.applied)
            return outcome

        told: dict[str, Any] = {"good": step().finite, "skipped": []}
        for poison in ("loss", "gradient"):
            before = state()
            with poisoned(poison, 1, worker):
                outcome = step()
            after = state()
            changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
            told["skipped"].append({"poison": poison, "finite": outcome.finite, "changed": changed})
        before = state()
        told["good again"] = step().finite
        after = state()
        told["changed again"] = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        told["tensors"] = list(after)
        told["weights"] = {name: float(tensor.double().sum()) for name, tensor in after.items()}
        tell(worker, part="skipping", optim=optim, parallelism=kind, **told)


def leaving_out_spikes(worker: Worker) -> None:
    """Leave out a step whose loss is far above the last ones on one worker alone."""
    share = some_tokens(8).chunk(worker.world_size)[worker.rank]
    inputs = Inputs(tokens_BT=share, condition=UNCONDITIONAL, masked_BT=None)
    before = [(3 + number % 5 / 10, 1 + number % 3 / 10) for number in range(60)]
    for optim, kind in product(("adam", "muon"), ("ddp", "fsdp")):
        config = CONFIG.with_fields(parallelism=kind, optim=optim)
        learner, spikes = Learner(SMALL, config, worker), SpikeGuard(6, before, worker)
        changed = []
        for poison in (None, "spike", None):
            state = {name: whole(tensor).clone() for name, tensor in learner.tensors().items()}
            with poisoned(poison, 1, worker) if poison else nullcontext():
                outcome = train_step(
                    learner.parallel, learner.optimizer, [lambda: inputs], 0.01, config, worker, spikes
                )
            learner.follow(len(changed) + 1, outcome.applied)
            after = {name: whole(tensor) for name, tensor in learner.tensors().items()}
            moved = sum(not torch.equal(tensor, after[name]) for name, tensor in state.items())
            verdicts: list[Any] = [None] * worker.world_size
            dist.all_gather_object(verdicts, outcome.is_spike)
            changed.append([verdicts, moved])
        tell(worker, part="spikes", optim=optim, parallelism=kind, changed=changed)


def starting(worker: Worker) -> None:
    """Start with sharded weights: the same bits as a whole model's, which no worker ever had."""
    kinds = {"plain": SMALL, "masked": MASKED, "by class": BY_CLASS, "upscaling": UPSCALING}
    on_meta: list[bool] = []
    shard = parallelism.shard

    def watched(model: ImageGPT, *arguments: Any) -> None:
        on_meta.extend(parameter.is_meta for parameter in model.parameters())
        shard(model, *arguments)

    with mock.patch.object(parallelism, "shard", watched):
        for name, model_config in kinds.items():
            config = CONFIG.with_fields(parallelism="fsdp")
            learner = Learner(model_config, config, worker)
            torch.manual_seed(config.optimizer.seed)
            expected = ImageGPT(model_config).state_dict()
            assert learner.average is not None
            pairs = [
                (weight, expected[key])
                for model in (learner.model, learner.average)
                for key, weight in model.named_parameters()
            ]
            sharded = all(isinstance(weight, DTensor) for weight, _ in pairs)
            same = all(torch.equal(whole(weight), value) for weight, value in pairs)
            tell(
                worker,
                part="starting",
                kind=name,
                same=same,
                sharded=sharded,
                weights=len(pairs),
                never_whole=all(on_meta),
            )


@contextmanager
def noted(name: str, tensors: list[Tensor]) -> Iterator[None]:
    """Within the block, add the outputs of one of PyTorch's collectives to a list."""
    plain = getattr(dist, name)

    def call(*arguments: Any, **options: Any) -> Any:
        tensors.append(options["output"] if "output" in options else arguments[0])
        return plain(*arguments, **options)

    with mock.patch.object(dist, name, call):
        yield


def gathering(worker: Worker) -> None:
    """Gather weights in the format of the products, and come to DDP's loss and gradients."""
    share = some_tokens(16).chunk(worker.world_size)[worker.rank]
    inputs = Inputs(tokens_BT=share, condition=UNCONDITIONAL, masked_BT=None)
    for precision in ("float32", "bfloat16"):
        for kind in ("ddp", "fsdp"):
            config = CONFIG.with_fields(parallelism=kind, precision=precision, global_batch=16)
            learner = Learner(SMALL, config, worker)
            parallelism.copy_whole(learner.model.head.weight, make(SMALL).head.weight.detach())
            gathered: list[Tensor] = []
            summed: list[Tensor] = []
            stream: list[Tensor] = []
            hook = learner.model.layers[1].register_forward_hook(lambda *call, to=stream: to.append(call[-1]))
            with noted("all_gather_single", gathered), noted("reduce_scatter_single", summed):
                outcome = train_step(learner.parallel, learner.optimizer, [lambda: inputs], 0.01, config, worker)
            hook.remove()
            tell(
                worker,
                part="gathering",
                precision=precision,
                parallelism=kind,
                loss=outcome.loss,
                norm=outcome.gradient_norm,
                gathered=[str(tensor.dtype) for tensor in gathered],
                summed=sorted({str(tensor.dtype) for tensor in summed}),
                stream=sorted({str(tensor.dtype) for tensor in stream}),
                stored=sorted({str(weight.dtype) for weight in learner.model.parameters()}),
            )


def main() -> None:
    """Run all parts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    worker = Worker(rank=dist.get_rank(), world_size=dist.get_world_size())
    for part in (skipping, leaving_out_spikes, starting, gathering):
        part(worker)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
