"""Erases images from a dataset, and from what was made of it: features, pictures, reports, caches of nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows.report import shown_images
from igpt_model.probing import feature_cache
from igpt_model.registry.client import Registry
from igpt_model.runs import record
from igpt_model.tracking import erased_pictures, trained_on
from pipeline.cluster import tasks
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.lifecycle.erase import Erased, Selection, erase
from pipeline.dataset.record import Publisher
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent
from pipeline.samples import shard_cache
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where else an image of a dataset may be."""

    runs: Sequence[str]
    """Buckets or folders of training runs."""
    features: Sequence[str] = ()
    """Feature caches besides {dataset}-features."""
    reports: Sequence[Path] = ()
    """Folders with reports, however deep."""
    tracking_uri: str | None = None
    """That of MLflow; None: it is not searched."""


def erase_everywhere(
    dataset: str,
    selection: Selection,
    places: Places,
    publisher: Publisher,
    *,
    progress: Progress = silent,
    nodes: Callable[[Callable[[], int]], dict[str, int]] | None = None,
) -> list[dict[str, Any]]:
    """Erase images from a dataset and all these places; returns the receipts. Raises IgptError as `erase` does.

    `nodes` calls a function on each node of the cluster. When a place does not answer, or a probe works with features,
    the erasure has begun, and the same call goes on with it.
    """
    return erase(
        dataset, selection, publisher, outside=partial(_outside, places, nodes or tasks.ask_nodes), progress=progress
    )


def _outside(places: Places, nodes: Callable[[Callable[[], int]], dict[str, int]], erased: Erased) -> dict[str, Any]:
    trainings = [one for one in _trainings(erased.dataset, places) if _saw(one, erased)]
    caches = dict.fromkeys([f"{erased.dataset.rstrip('/')}-features", *map(objects.absolute, places.features)])
    folders = frozenset(filter(None, map(_cache_of, trainings)))
    forget = partial(shard_cache.forget, erased.dataset, erased.kept_shards, (None, *sorted(folders)))
    return {
        "trained_on": [{"name": one.name, "snapshot": one.snapshot} for one in trainings],
        "features": sum(feature_cache.remove_of_shards(url, erased.shards) for url in caches),
        "mlflow": "not searched" if places.tracking_uri is None else _pictures(erased, places.tracking_uri),
        "reports": [str(path) for folder in places.reports for path in _reports(folder, erased)],
        "node_caches": {"this process": forget(), **nodes(forget)},
    }


def _trainings(dataset: str, places: Places) -> list[trained_on.Training]:
    registry = None if places.tracking_uri is None else Registry(places.tracking_uri)
    return trained_on.find(dataset, places.runs, registry)


def _saw(training: trained_on.Training, erased: Erased) -> bool:
    if training.digest is not None:
        return training.digest in erased.digests
    return training.snapshot in {changed["number"] for changed in erased.plan["snapshots"]}


def _cache_of(training: trained_on.Training) -> str | None:
    """The folder in which a run caches shards, if it was set."""
    try:
        return None if training.name.startswith("models:") else record.read(training.name).config.execution.cache
    except IgptError:  # it was removed meanwhile
        return None


def shows(html: bytes, dataset: str, tombstones: Tombstones, *, otherwise: bool) -> bool:
    """Whether a report shows an erased image of a dataset; `otherwise` for a file that does not list what it shows."""
    try:
        shown = shown_images.read(html.decode(errors="replace"))
    except IgptError:
        return otherwise
    return shown.dataset == dataset and any(map(tombstones.has_key, shown.sections_by_key))


def _pictures(erased: Erased, tracking_uri: str) -> list[str]:
    def is_shown(html: bytes, trained_on_it: bool) -> bool:
        return shows(html, erased.dataset, erased.tombstones, otherwise=trained_on_it)

    files = list(erased_pictures.find(tracking_uri, erased.dataset, erased.digests, is_shown))
    for file in files:
        erased_pictures.remove(tracking_uri, file)
    return [f"{file.run}/{file.path}" for file in files]


def _reports(folder: Path, erased: Erased) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*.html")):
        if path.is_file() and shows(path.read_bytes(), erased.dataset, erased.tombstones, otherwise=False):
            # The demo leaves a picture beside its report, of the held-out images that are in the report too.
            for shown in (path.with_name("completions.png"), path):
                if shown.is_file():
                    shown.unlink()
                    found.append(shown)
    return found
