"""What the exporter reads: the datasets, leases, models and deployments that a file of deployments names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.config.refresh import RefreshConfig
from pipeline.config import DatasetConfig
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The subjects of the metrics, each once, sorted."""

    datasets: tuple[str, ...]
    """URLs of datasets."""
    leases: tuple[str, ...]
    """Folders with a lease: of datasets, and of the turns of scheduled runs."""
    models: tuple[str, ...]
    """Names of registered models."""
    deployments: tuple[str, ...]


def watched(names: Sequence[str], configs: Sequence[Any]) -> Watched:
    """The subjects of deployments with these names and configs; configs of other flows are ignored."""
    datasets, leases, models = set(), set(), set()
    for config in configs:
        if isinstance(config, RefreshConfig):
            runs = objects.absolute(config.pretrain.keeping.runs)
            leases.add(objects.join(runs, "turn"))
            models.add(config.pretrain.tracking.model_name)
        dataset = config.dataset if isinstance(config, RefreshConfig) else config
        if isinstance(dataset, DatasetConfig):
            url = objects.absolute(dataset.dataset)
            datasets.add(url)
            leases |= {url, objects.join(url, "turn")}
    return Watched(
        datasets=tuple(sorted(datasets)),
        leases=tuple(sorted(leases)),
        models=tuple(sorted(models)),
        deployments=tuple(sorted(names)),
    )
