"""Evaluates a model on a split of a dataset: on the Ray cluster where there is one, else in this process."""

from collections.abc import Callable
from dataclasses import dataclass

from flows import trust
from flows.services import cluster, settings
from igpt_model.evaluating.config import EvaluateConfig
from igpt_model.evaluating.ray import Executor, split_loss
from igpt_model.evaluating.split_loss import SplitLoss
from igpt_model.model.losses import Baselines, baselines
from igpt_model.registry.client import IDENTITY, Registry, Version
from igpt_model.runs.open_model import load_model, open_model
from igpt_model.tracking import runs
from pipeline.dataset import count_shards, snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The loss of a model on a split, beside those of models that only count."""

    model: str
    """The reference, of a registered model that of its version."""
    snapshot: Snapshot
    split: str
    loss: SplitLoss
    baselines: Baselines
    """Counted on the training split."""


def choose_executor(say: Callable[[str], None], step: str = "probe", doing: str = "evaluating") -> Executor:
    """The cluster of the services, or this process when none is configured or it does not answer.

    Tasks use the object store with the key of the step; `doing` is what `say` tells in the second case.
    """
    address = settings.addresses().get("Ray")
    if address is None:
        return Executor.here()
    try:
        cluster.connect(address, step)
    except IgptError as error:
        say(f"{error}; {doing} in this process")
        return Executor.here()
    return Executor.cluster()


def evaluate(model: str, config: EvaluateConfig, executor: Executor, progress: Progress) -> Evaluation:
    """Evaluate a run, a checkpoint, a model folder or a registered version. Raises IgptError if it does not match."""
    if not config.dataset:
        raise IgptError("dataset is empty: give it a value, as in `igpt evaluate MODEL dataset=...`")
    data = snapshot.read(config.dataset, config.snapshot)
    data.of_split(config.split)
    if model.startswith("models:"):
        uri = settings.tracking_uri()
        runs.check_reachable(uri)
        registry = trust.registry(uri)
        version = registry.find(model)
        model, loss = version.uri, version_loss(registry, version, data, config.split, executor, progress)
    else:
        loss = split_loss(lambda: load_model(model), None, data, config.split, executor, progress)
    counts = [count_shards.of_split(data, split, progress, executor.run) for split in ("train", config.split)]
    return Evaluation(model=model, snapshot=data, split=config.split, loss=loss, baselines=baselines(*counts))


def version_loss(
    registry: Registry, version: Version, data: Snapshot, split: str, executor: Executor, progress: Progress
) -> SplitLoss:
    """The loss of a registered version; the model is downloaded only when its loss is not kept yet."""
    return split_loss(
        lambda: open_model(version.uri, registry.open), version.tags.get(IDENTITY), data, split, executor, progress
    )
