"""Evaluating on a Ray cluster, or in this process: a task per shard; the result is kept, and found by the next."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from igpt_model.evaluating.split_loss import SplitLoss, check_can_be_evaluated, sum_of_nats
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.feature_cache import network_digest
from igpt_model.runs.open_model import on_device
from pipeline.cluster import tasks
from pipeline.dataset import measured, verified_shards
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.progress import Progress, silent
from pipeline.samples.shard_cache import Images


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Where the tasks of an evaluation run."""

    run: Callable[..., Any]
    """tasks.map_tasks or tasks.map_here."""
    device: str
    """cpu or cuda."""
    is_cluster: bool = False

    @classmethod
    def cluster(cls) -> "Executor":
        """The cluster that this process is connected to; on its GPUs, if it has any."""
        device = "cuda" if tasks.total_resources().get("GPU") else "cpu"
        return cls(run=tasks.map_tasks, device=device, is_cluster=True)

    @classmethod
    def here(cls) -> "Executor":
        """This process; on a GPU, if there is one."""
        return cls(run=tasks.map_here, device="cuda" if torch.cuda.is_available() else "cpu")


def split_loss(
    open_bundle: Callable[[], ModelBundle],
    identity: str | None,
    data: Snapshot,
    split: str,
    executor: Executor,
    progress: Progress = silent,
) -> SplitLoss:
    """The loss of a model on a split: as kept by the first evaluation of these weights on this content, or evaluated.

    `identity` is a digest of the model's files, by which a result is found without opening the model; None: that of
    its weights. Losses of GPUs, in bfloat16, are kept apart. Raises IgptError when the model and the dataset do not
    match, or the split has no images.
    """
    shards = data.of_split(split)
    bundle = None
    if identity is None:
        bundle = open_bundle()
        identity = network_digest(bundle)
    name = f"loss-{split}-{identity[:24]}{'-bfloat16' if executor.device == 'cuda' else ''}.json"
    kept = measured.read(data, name)
    loss = None if kept is None else SplitLoss.from_bytes(kept)
    if loss is not None:
        return loss
    bundle = bundle or open_bundle()
    check_can_be_evaluated(bundle, data)
    starts = accumulate((shard.samples for shard in shards), initial=0)
    sums = [0.0] * len(shards)
    progress("evaluate", 0, len(shards), "shards")
    # The snapshot without its manifest, which has an entry for each shard.
    shared = (on_device(bundle, "cpu"), replace(data, shards=()), executor.device)
    calls = zip(shards, starts, strict=False)
    gpus = 1 if executor.device == "cuda" else 0
    for done, (number, total) in enumerate(executor.run(_evaluate, calls, shared=shared, num_gpus=gpus), 1):
        sums[number] = total
        progress("evaluate", done, len(shards), "shards")
    loss = SplitLoss.of_sums(sums, bundle, data.samples(split))
    measured.keep(data, name, loss.to_bytes())
    return loss


def _evaluate(shard: ShardEntry, first_place: int, bundle: ModelBundle, data: Snapshot, device: str) -> float:
    """The sum of the losses of a shard's images."""
    view = verified_shards.read(data, shard)
    tokens_NT = view.tokens_NHW.reshape(shard.samples, -1)
    images = Images(tokens_NT=np.asarray(tokens_NT), labels_N=view.labels_N)
    return sum_of_nats(on_device(bundle, device), images, first_place)
