"""Probing on a Ray cluster: one task per shard extracts features into a cache, one task per layer fits a classifier."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from igpt_model.data.same_tokens import check_same_tokens
from igpt_model.inference.features import check_has_features, image_features, untrained
from igpt_model.inference.pooling import images_at_once, numbers_of
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.config import ProbeConfig
from igpt_model.probing.feature_cache import FeatureCache, cache_of, network_digest
from igpt_model.probing.fine_tune import fine_tune
from igpt_model.probing.labelled import LabelledTokens, SplitTokens
from igpt_model.probing.linear import (
    FittedProbe,
    LabelledFeatures,
    ProbeScore,
    SplitFeatures,
    fit_probe,
    low_data_score,
    nearest,
    neighbour_score,
)
from igpt_model.probing.result import SOURCES, NeighbourSheet, ProbeResult, TrainedScore
from igpt_model.probing.supervised import low_data_supervised, train_supervised
from igpt_model.runs.open_model import on_device
from pipeline.cluster import tasks
from pipeline.dataset.shards import KEY_LENGTH
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.progress import Progress, silent
from pipeline.samples.shard_cache import ShardCache, ShardImages
from pipeline.store import objects, presence

_SHEET_IMAGES, _SHEET_NEIGHBOURS = 8, 6
_COPIES = 3  # of its features that fitting a classifier holds: as read, standardized, and the parts they are read from
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The images to probe on: the first labelled rows of each shard."""

    snapshot: Snapshot
    rows: dict[str, tuple[tuple[ShardEntry, int], ...]]
    """Shards and their numbers of rows, by split."""

    @property
    def calls(self) -> list[tuple[ShardEntry, int]]:
        return [call for split in SPLITS for call in self.rows[split]]

    def splits(self) -> SplitTokens:
        return SplitTokens(**{split: self.tokens(split) for split in SPLITS})

    def tokens(self, split: str) -> LabelledTokens:
        opened = [_rows(self.snapshot, shard, rows) for shard, rows in self.rows[split]]
        return LabelledTokens(
            tokens_NT=np.concatenate([tokens.tokens_NT for tokens in opened]),
            labels_N=np.concatenate([tokens.labels_N for tokens in opened]),
        )

    def keys(self, split: str, chosen_N: np.ndarray) -> list[str]:
        """The keys of images, by their positions among `tokens`."""
        keys: dict[int, str] = {}
        first = 0
        for shard, rows in self.rows[split]:
            images = ShardCache(self.snapshot).open(shard)
            labelled = _labelled(images, rows)
            of_shard = np.unique(chosen_N[(chosen_N >= first) & (chosen_N < first + len(labelled))])
            # A random crop has the key of its image and a number.
            keys |= {row: images.view.key(labelled[row - first])[:KEY_LENGTH] for row in of_shard.tolist()}
            first += len(labelled)
        return [keys[row] for row in chosen_N.tolist()]


def _labelled(images: ShardImages, rows: int) -> np.ndarray:
    """The rows of a shard to probe on: the first of those with a class."""
    return np.flatnonzero(images.labels_N >= 0)[:rows]


def _rows(snapshot: Snapshot, shard: ShardEntry, rows: int) -> LabelledTokens:
    view = ShardCache(snapshot).open(shard)
    labelled = _labelled(view, rows)
    tokens_NT = view.tokens_NHW[labelled].reshape(len(labelled), snapshot.resolution**2).astype(np.int64)
    return LabelledTokens(tokens_NT=tokens_NT, labels_N=view.labels_N[labelled])


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A source of features: a layer of a network, or without a cache the raw pixels."""

    cache: FeatureCache | None
    layer: int = 0

    def splits(self, data: _Data, palette_K3: np.ndarray) -> SplitFeatures:
        return SplitFeatures(**{split: self._features(data, split, palette_K3) for split in SPLITS})

    def _features(self, data: _Data, split: str, palette_K3: np.ndarray) -> LabelledFeatures:
        tokens = data.tokens(split)
        if self.cache is None:
            side = data.snapshot.resolution
            pixels = palette.to_pixels(tokens.tokens_NT.reshape(-1, side, side), palette_K3)
            features = pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1
        else:
            features = np.concatenate([self.cache.read(shard, rows, self.layer) for shard, rows in data.rows[split]])
        return LabelledFeatures(features=features, labels=tokens.labels_N)


def _plan(snapshot: Snapshot, config: ProbeConfig) -> _Data:
    """Select the rows of each shard; the training split is limited to `max_train_images`."""
    rows = {}
    for split in SPLITS:
        share = min(1.0, config.max_train_images / snapshot.samples(split)) if split == "train" else 1.0
        rows[split] = tuple((shard, max(1, round(shard.samples * share))) for shard in snapshot.of_split(split))
    return _Data(snapshot=snapshot, rows=rows)


def _extract(network: int, shard: ShardEntry, rows: int, snapshot: Snapshot, *networks: Any) -> None:
    """Extract the features of a shard with one of the networks, and store them in its cache."""
    bundle, cache = networks[2 * network], networks[2 * network + 1]
    bundle = on_device(bundle, None)
    tokens = torch.from_numpy(_rows(snapshot, shard, rows).tokens_NT).to(bundle.model.positions.device)
    at_once = images_at_once(bundle.model.config, cache.pooling, cache.layers)
    batches = (
        image_features(bundle, part_BT, pooling=cache.pooling).flatten(2).cpu().numpy()
        for part_BT in tokens.split(at_once)
    )
    cache.write(shard, rows, batches, count=len(tokens))
    _log.info("features of %d images of shard %s are in %s", len(tokens), shard.name, cache.url)


def _labels(split: str, data: _Data, palette_K3: np.ndarray, config: ProbeConfig) -> np.ndarray:
    """The labels of a split's images, int64 [n]; read by a task, because it opens every shard of the split."""
    return np.concatenate([_rows(data.snapshot, shard, rows).labels_N for shard, rows in data.rows[split]])


def _fit(source: _Source, data: _Data, palette_K3: np.ndarray, config: ProbeConfig) -> FittedProbe:
    return fit_probe(source.splits(data, palette_K3), config.strengths, config.max_iterations)


def _low_data(count: int, source: _Source, data: _Data, palette_K3: np.ndarray, config: ProbeConfig) -> Any:
    splits = source.splits(data, palette_K3)
    return low_data_score(splits, count, config.draws, config.strengths, config.max_iterations, config.seed)


def _neighbours(source: _Source, data: _Data, palette_K3: np.ndarray, config: ProbeConfig) -> Any:
    return neighbour_score(source.splits(data, palette_K3), config.neighbours)


def _fine_tune(bundle: ModelBundle, data: _Data, palette_K3: np.ndarray, config: ProbeConfig) -> TrainedScore:
    assert config.fine_tune is not None
    return fine_tune(on_device(bundle, None), data.splits(), config.fine_tune)


def _supervised(count: int | None, data: _Data, palette_K3: np.ndarray, config: ProbeConfig) -> Any:
    """Train the convolutional network on all labels, or on draws of `count` a class."""
    assert config.supervised is not None
    splits, device = data.splits(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if count is None:
        return train_supervised(splits, palette_K3, config.supervised, device)
    return low_data_supervised(splits, palette_K3, count, config.draws, config.seed, config.supervised, device)


def _sheet(source: _Source, data: _Data, palette_K3: np.ndarray, config: ProbeConfig) -> NeighbourSheet:
    """A few random test images and their nearest training images."""
    splits, train, test = source.splits(data, palette_K3), data.tokens("train"), data.tokens("test")
    count = min(_SHEET_IMAGES, len(test.labels_N))
    test_rows = np.sort(np.random.default_rng(config.seed).permutation(len(test.labels_N))[:count])
    neighbours = min(_SHEET_NEIGHBOURS, len(train.labels_N))
    train_rows_NK = nearest(splits.train.features, splits.test.features[test_rows], neighbours).rows_NK
    train_keys = data.keys("train", train_rows_NK.reshape(-1))
    return NeighbourSheet(
        test_tokens_NT=test.tokens_NT[test_rows],
        test_labels_N=test.labels_N[test_rows],
        train_tokens_NKT=train.tokens_NT[train_rows_NK],
        train_labels_NK=train.labels_N[train_rows_NK],
        test_keys=tuple(data.keys("test", test_rows)),
        train_keys=tuple(tuple(train_keys[i : i + neighbours]) for i in range(0, len(train_keys), neighbours)),
    )


class _Cluster:
    """Runs tasks that share the data, and reports progress."""

    def __init__(self, data: _Data, palette_K3: np.ndarray, config: ProbeConfig, progress: Progress) -> None:
        self._shared = (data, palette_K3, config)
        self._progress = progress
        self._gpus = 1 if tasks.total_resources().get("GPU") else 0

    @property
    def has_gpus(self) -> bool:
        """Whether features are extracted on GPUs."""
        return self._gpus > 0

    def labels(self) -> dict[str, np.ndarray]:
        """The labels of the images of each split, int64 [n]."""
        calls = [(split,) for split in SPLITS]
        labels = self.run_sharing("labels", "splits", _labels, calls, self._shared, gpus=0)
        return dict(zip(SPLITS, labels, strict=True))

    def run(self, step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The results of function(*call, data, palette, config), in the order of the calls."""
        return self.run_sharing(step, "classifiers", function, calls, self._shared, gpus=0)

    def train(self, step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As `run`, for trainings of networks: on GPUs if there are any."""
        return self.run_sharing(step, "networks", function, calls, self._shared, gpus=self._gpus)

    def extract(self, calls: Sequence[tuple[Any, ...]], shared: tuple[Any, ...]) -> None:
        """Extract features, on GPUs if there are any."""
        self.run_sharing("features", "shards", _extract, calls, shared, gpus=self._gpus)

    def run_sharing(
        self,
        step: str,
        what: str,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        shared: tuple[Any, ...],
        *,
        gpus: int,
    ) -> list[Any]:
        """The results of function(*call, *shared), in the order of the calls."""
        if not calls:
            return []
        results: list[Any] = [None] * len(calls)
        self._progress(step, 0, len(calls), what)
        finished = tasks.map_tasks(function, calls, shared=shared, num_gpus=gpus)
        for done, (number, result) in enumerate(finished, 1):
            results[number] = result
            self._progress(step, done, len(calls), what)
        return results


def probe_on_cluster(
    bundle: ModelBundle, snapshot: Snapshot, config: ProbeConfig, *, progress: Progress = silent
) -> ProbeResult:
    """Probe every layer of a model on a labelled dataset. Raises IgptError when they do not match."""
    with _cache_for(bundle, snapshot, config, progress) as (data, cluster, by_split, url):
        return _probe(bundle, data, config, cluster, by_split, url)


def probe_layers(
    bundle: ModelBundle, snapshot: Snapshot, config: ProbeConfig, *, progress: Progress = silent
) -> tuple[ProbeScore, ...]:
    """The linear probe of every layer, with nothing beside it: for models that are compared with each other."""
    with _cache_for(bundle, snapshot, config, progress) as (data, cluster, _, url):
        sources = _extracted((bundle,), data, config, cluster, url).sources
        return tuple(fitted.score for fitted in cluster.run("probe", _fit, [(source,) for source in sources]))


@contextmanager
def _cache_for(
    bundle: ModelBundle, snapshot: Snapshot, config: ProbeConfig, progress: Progress
) -> Iterator[tuple[_Data, _Cluster, dict[str, np.ndarray], str]]:
    """Check a model and a dataset; the labels by split, and the URL of a cache that nobody removes meanwhile."""
    check_fits(bundle, snapshot)
    data = _plan(snapshot, config)
    _check_memory(bundle, data, config)
    cluster = _Cluster(data, bundle.palette_K3, config, progress)
    by_split = cluster.labels()
    _check_labels(snapshot, by_split)
    url = objects.absolute(config.features or cache_of(snapshot.dataset))
    with presence.probing(url):
        yield data, cluster, by_split, url


@dataclass(frozen=True, kw_only=True)
class _Extracted:
    """The features of networks: every layer of the first, then every layer of the next."""

    sources: list[_Source]
    shards_computed: int
    """The others were cached."""


def _extracted(
    networks: Sequence[ModelBundle], data: _Data, config: ProbeConfig, cluster: _Cluster, url: str
) -> _Extracted:
    caches = [
        FeatureCache(
            url=url,
            network=network_digest(network),
            layers=network.model.config.layers + 1,
            on_gpu=cluster.has_gpus,
            pooling=config.pooling,
        )
        for network in networks
    ]
    missing = [(number, *call) for number, cache in enumerate(caches) for call in cache.missing(data.calls)]
    pairs = [part for pair in zip(networks, caches, strict=True) for part in pair]
    cluster.extract(missing, (data.snapshot, *pairs))
    sources = [_Source(cache=cache, layer=layer) for cache in caches for layer in range(cache.layers)]
    return _Extracted(sources=sources, shards_computed=len(missing))


def _probe(
    bundle: ModelBundle,
    data: _Data,
    config: ProbeConfig,
    cluster: _Cluster,
    by_split: dict[str, np.ndarray],
    url: str,
) -> ProbeResult:
    """Probe every layer with the features in the cache at a URL, which no other process removes meanwhile."""
    snapshot = data.snapshot
    fresh = replace(bundle, model=untrained(bundle.model, config.seed))
    layers = bundle.model.config.layers + 1
    extracted = _extracted((bundle, fresh), data, config, cluster, url)
    sources = extracted.sources
    fitted = cluster.run("probe", _fit, [(source,) for source in [*sources, _Source(cache=None)]])
    result = ProbeResult(
        layers=tuple(probe.score for probe in fitted[:layers]),
        untrained_layers=tuple(probe.score for probe in fitted[layers : 2 * layers]),
        raw_pixels=fitted[-1].score,
        majority=float((by_split["test"] == np.bincount(by_split["train"]).argmax()).mean()),
        train_images=len(by_split["train"]),
        validation_images=len(by_split["validation"]),
        test_images=len(by_split["test"]),
        shards_computed=extracted.shards_computed,
        shards_cached=2 * len(data.calls) - extracted.shards_computed,
        pooling=config.pooling,
    )
    best = fitted[result.best_layer]
    confusion_KK = np.zeros((len(snapshot.classes), len(snapshot.classes)), np.int64)
    np.add.at(confusion_KK, (by_split["test"], best.test_predictions), 1)
    result = replace(result, head=replace(best.head, pooling=config.pooling), confusion_KK=confusion_KK)
    best_sources = (sources[result.best_layer], sources[layers + result.untrained_best_layer], _Source(cache=None))
    return _evaluate_best_layers(result, cluster, best_sources, (bundle, fresh), config)


def _evaluate_best_layers(
    result: ProbeResult,
    cluster: _Cluster,
    best_sources: tuple[_Source, _Source, _Source],
    networks: tuple[ModelBundle, ModelBundle],
    config: ProbeConfig,
) -> ProbeResult:
    """Add the evaluations that use only the best layers: few labels, neighbours, fine-tuning and the sheet."""
    counts = config.labels_per_class
    few = cluster.run("few labels", _low_data, [(count, source) for source in best_sources for count in counts])
    near = cluster.run("neighbours", _neighbours, [(source,) for source in best_sources if config.neighbours])
    tuned = cluster.train("fine-tune", _fine_tune, [(network,) for network in networks if config.fine_tune is not None])
    all_labels = () if config.supervised is None else (None, *counts)
    supervised = cluster.train("supervised", _supervised, [(count,) for count in all_labels])
    (sheet,) = cluster.run("picture", _sheet, [(best_sources[0],)])
    return replace(
        result,
        low_data={
            source: tuple(few[number * len(counts) : (number + 1) * len(counts)])
            for number, source in enumerate(SOURCES)
            if counts
        },
        neighbours=dict(zip(SOURCES, near, strict=False)),
        fine_tuned=dict(zip(SOURCES, tuned, strict=False)),
        supervised=next(iter(supervised), None),
        supervised_low_data=tuple(supervised[1:]),
        sheet=sheet,
    )


def _check_memory(bundle: ModelBundle, data: _Data, config: ProbeConfig) -> None:
    """Raise IgptError when the features of rows or pixels of one layer are more than a node can hold."""
    if config.pooling == "mean":
        return
    numbers, images = numbers_of(bundle.model.config, config.pooling), sum(rows for _, rows in data.calls)
    needed = 4 * numbers * images * _COPIES
    largest = max((node.get("memory", 0.0) for node in tasks.node_resources().values()), default=0.0)
    if needed > largest:
        raise IgptError(
            f"pooling is {config.pooling}: a classifier of {numbers:,} numbers for each of {images:,} images takes "
            f"{needed / 2**30:,.1f} GiB, the largest node has {largest / 2**30:,.1f}; lower max_train_images, or take "
            f"{'rows or ' if config.pooling == 'none' else ''}mean"
        )


def _check_labels(snapshot: Snapshot, by_split: dict[str, np.ndarray]) -> None:
    """Raise IgptError when a dataset has too few labels or classes for a probe."""
    classes = len(np.unique(by_split["train"]))
    if classes < 2:
        raise IgptError(
            f"{snapshot.dataset}: its training images have {classes} classes, a probe needs at least 2; "
            "put the images of each class in a separate folder"
        )
    for split, labels in by_split.items():
        if not len(labels):
            raise IgptError(
                f"{snapshot.dataset}: no image of its {split} split has a class; put the images of each class in a "
                "separate folder"
            )


def check_fits(bundle: ModelBundle, snapshot: Snapshot) -> None:
    """Raise IgptError when a model has no features, or another resolution or palette than the dataset."""
    check_has_features(bundle.model.config)
    check_same_tokens(bundle, snapshot)
