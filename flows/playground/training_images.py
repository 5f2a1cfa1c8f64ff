"""The training images nearest to a picture, by the features that a probe has left in the cache of a dataset."""

from dataclasses import dataclass

import numpy as np

from flows.playground.protocol import Near
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.feature_cache import FeatureCache, cache_of, network_digest
from igpt_model.probing.linear import nearest
from pipeline.dataset import snapshot, verified_shards
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError

_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """The labelled training images that a probe was fitted on, with their features; N images of R by R pixels."""

    layer: int
    features_NC: np.ndarray
    pictures_NRR3: np.ndarray
    classes_N: tuple[str, ...]

    def nearest_to(self, features_C: np.ndarray) -> tuple[Near, ...]:
        """The images whose features are most like these, as `igpt probe` compares them, nearest first."""
        found = nearest(self.features_NC, features_C[None], min(_SHOWN, len(self.features_NC)))
        return tuple(
            Near(picture_RR3=self.pictures_NRR3[row], class_name=self.classes_N[row], cosine=float(cosine))
            for row, cosine in zip(found.rows_NK[0].tolist(), found.cosines_NK[0].tolist(), strict=True)
        )


def cached(bundle: ModelBundle, layer: int, dataset: str, number: int | None) -> TrainingImages | None:
    """The training images of a snapshot whose features of a model's layer are cached.

    None: nothing is, or the dataset is no more, as that of a model from elsewhere.
    """
    try:
        data = snapshot.read(dataset, number)
        return _read(bundle, layer, data)
    except (IgptError, OSError):
        return None


def _read(bundle: ModelBundle, layer: int, data: Snapshot) -> TrainingImages | None:
    shards = data.of_split("train")
    network, layers = network_digest(bundle), bundle.model.config.layers + 1
    for on_gpu in (False, True):
        cache = FeatureCache(url=cache_of(data.dataset), network=network, layers=layers, on_gpu=on_gpu)
        if calls := cache.found(shards, layer):
            return _of_shards(bundle, data, cache, calls, layer)
    return None


def _of_shards(
    bundle: ModelBundle, data: Snapshot, cache: FeatureCache, calls: list[tuple[ShardEntry, int]], layer: int
) -> TrainingImages:
    tokens, labels = [], []
    for shard, rows in calls:
        view = verified_shards.read(data, shard)
        labelled = np.flatnonzero(view.labels_N >= 0)[:rows]
        tokens.append(view.tokens_NHW[labelled].reshape(len(labelled), -1).astype(np.int64))
        labels.extend(view.labels_N[labelled].tolist())
    return TrainingImages(
        layer=layer,
        features_NC=np.concatenate([cache.read(shard, rows, layer) for shard, rows in calls]),
        pictures_NRR3=bundle.pictures(np.concatenate(tokens)),
        classes_N=tuple(data.classes[label] for label in labels),
    )
