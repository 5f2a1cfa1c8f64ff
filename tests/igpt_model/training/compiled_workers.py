"""Gradients of torchrun workers that compile their blocks: a line of JSON for each parallelism."""

import itertools
import json

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.network import UNCONDITIONAL
from igpt_model.training.parallel import autocast, copy_whole, make_model, parallelize
from igpt_model.training.step import losses
from igpt_model.worker import Worker
from tests.igpt_model.model.test_network import SMALL, make, some_tokens


def main() -> None:
    """Compute a gradient with each parallelism and each way of executing the blocks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    worker = Worker(rank=dist.get_rank(), world_size=dist.get_world_size())
    config = PretrainConfig.from_fields(runs="r", preset="tiny")
    inputs = Inputs(tokens_BT=some_tokens(4), condition=UNCONDITIONAL, masked_BT=None)
    for precision, parallelism in itertools.product(("float32", "bfloat16"), ("ddp", "fsdp")):
        for compiled in (False, True):
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            chosen = config.with_fields(
                parallelism=parallelism, compile=compiled, precision=precision, activation_checkpointing=True
            )
            model = make_model(SMALL, chosen, worker)
            whole = make(SMALL).state_dict()
            for name, weight in model.named_parameters():
                copy_whole(weight, whole[name])
            with autocast(chosen, worker.device):
                loss = losses(parallelize(model, worker, chosen), inputs).mean()
            loss.backward()
            gradient = model.layers[0].mlp_in.weight.grad
            assert gradient is not None
            norm = gradient.norm().full_tensor() if isinstance(gradient, DTensor) else gradient.norm()
            counters = torch._dynamo.utils.counters
            told = {
                "precision": precision,
                "parallelism": parallelism,
                "compiled": compiled,
                "loss": loss.item(),
                "norm": norm.item(),
                "graphs": counters["stats"]["unique_graphs"],
                "breaks": sum(counters["graph_break"].values()),
            }
            if worker.rank == 0:
                print(json.dumps(told), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
