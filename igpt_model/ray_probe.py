"""The probe on a cluster: tasks over shards extract features, tasks over layers fit the classifiers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from igpt_model.config import ProbeConfig
from igpt_model.data import ShardCache
from igpt_model.features import check_has_features, image_features, untrained
from igpt_model.model_folder import ModelFolder
from igpt_model.probe import LabelledFeatures, ProbeResult, ProbeScore, fit_probe
from pipeline import palette as palettes
from pipeline import ray_cluster
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent
from pipeline.snapshot import SPLITS, ShardEntry, Snapshot


@dataclass(frozen=True, kw_only=True)
class _ShardFeatures:
    trained_LNC: np.ndarray
    untrained_LNC: np.ndarray
    raw_ND: np.ndarray
    labels_N: np.ndarray


def _extract(
    shard: ShardEntry, rows: int, snapshot: Snapshot, folder: ModelFolder, fresh: ModelFolder
) -> _ShardFeatures:
    """Features of the first `rows` labelled images of a shard, by both networks, and the raw pixels."""
    view = ShardCache(snapshot).open(shard)
    labelled = np.flatnonzero(view.labels_N >= 0)[:rows]
    tokens_NHW = view.tokens_NHW[labelled]
    tokens_NT = torch.from_numpy(tokens_NHW.reshape(len(labelled), -1).astype(np.int64))
    raw = palettes.to_pixels(tokens_NHW, folder.palette_K3).reshape(len(labelled), -1).astype(np.float32) / 127.5 - 1
    return _ShardFeatures(
        trained_LNC=image_features(folder, tokens_NT).numpy(),
        untrained_LNC=image_features(fresh, tokens_NT).numpy(),
        raw_ND=raw,
        labels_N=view.labels_N[labelled],
    )


def _calls(snapshot: Snapshot, config: ProbeConfig) -> list[tuple[str, ShardEntry, int]]:
    """Split, shard and number of rows of every extraction; the training split cut to `max_train_images`."""
    calls: list[tuple[str, ShardEntry, int]] = []
    for split in SPLITS:
        shards = snapshot.of_split(split)
        share = min(1.0, config.max_train_images / snapshot.samples(split)) if split == "train" else 1.0
        calls.extend((split, shard, max(1, round(shard.samples * share))) for shard in shards)
    return calls


def probe_on_cluster(
    folder: ModelFolder, snapshot: Snapshot, config: ProbeConfig, *, progress: Progress = silent
) -> ProbeResult:
    """Probe every layer of a model on a labelled dataset. Raises IgptError when the two do not fit together."""
    check_fits(folder, snapshot)
    fresh = ModelFolder(
        model=untrained(folder.model, config.seed), palette_K3=folder.palette_K3, classes=folder.classes
    )
    calls = _calls(snapshot, config)
    parts: list[_ShardFeatures | None] = [None] * len(calls)
    progress("features", 0, len(calls), "shards")
    tasks = ray_cluster.map_tasks(
        _extract, ((shard, rows) for _, shard, rows in calls), shared=(snapshot, folder, fresh)
    )
    for done, (number, part) in enumerate(tasks, 1):
        parts[number] = part
        progress("features", done, len(calls), "shards")
    by_split = {
        split: _join([part for (s, *_), part in zip(calls, parts, strict=True) if s == split and part is not None])
        for split in SPLITS
    }
    labels = by_split["train"].labels_N
    if len(np.unique(labels)) < 2:
        raise IgptError(
            f"{snapshot.dataset}: its training images have {len(np.unique(labels))} classes, a probe needs at least 2; "
            "put the images of each class in a folder of their own"
        )
    layers = folder.model.config.layers + 1
    scores = _fit_all(by_split, layers, config, progress)
    majority = np.bincount(labels).argmax()
    return ProbeResult(
        layers=tuple(scores[:layers]),
        untrained_layers=tuple(scores[layers : 2 * layers]),
        raw_pixels=scores[-1],
        majority=float((by_split["test"].labels_N == majority).mean()),
        train_images=len(labels),
        validation_images=len(by_split["validation"].labels_N),
        test_images=len(by_split["test"].labels_N),
    )


def _fit_all(
    by_split: dict[str, _ShardFeatures], layers: int, config: ProbeConfig, progress: Progress
) -> list[ProbeScore]:
    """The scores of the trained layers, the untrained layers, and the raw pixels, in this order."""

    def features(which: int) -> tuple[LabelledFeatures, ...]:
        chosen = []
        for split in SPLITS:
            part = by_split[split]
            if which < 2 * layers:
                x = (part.trained_LNC if which < layers else part.untrained_LNC)[which % layers]
            else:
                x = part.raw_ND
            chosen.append(LabelledFeatures(features=x, labels=part.labels_N))
        return tuple(chosen)

    total = 2 * layers + 1
    scores: list[ProbeScore | None] = [None] * total
    progress("probe", 0, total, "classifiers")
    tasks = ray_cluster.map_tasks(fit_probe, (features(which) for which in range(total)), shared=(config,))
    for done, (number, score) in enumerate(tasks, 1):
        scores[number] = score
        progress("probe", done, total, "classifiers")
    return [score for score in scores if score is not None]


def _join(parts: Sequence[_ShardFeatures]) -> _ShardFeatures:
    return _ShardFeatures(
        trained_LNC=np.concatenate([part.trained_LNC for part in parts], 1),
        untrained_LNC=np.concatenate([part.untrained_LNC for part in parts], 1),
        raw_ND=np.concatenate([part.raw_ND for part in parts]),
        labels_N=np.concatenate([part.labels_N for part in parts]),
    )


def check_fits(folder: ModelFolder, snapshot: Snapshot) -> None:
    """Raise IgptError for a model without features, or of another resolution or palette than a dataset."""
    check_has_features(folder.model.config)
    if folder.model.config.resolution != snapshot.resolution:
        raise IgptError(
            f"{snapshot.dataset} has resolution {snapshot.resolution}, the model {folder.model.config.resolution}: "
            "build the dataset with the model's resolution"
        )
    model_palette = palettes.sha256(folder.palette_K3)
    if model_palette != snapshot.palette_sha256:
        raise IgptError(
            f"{snapshot.dataset} has palette {snapshot.palette_sha256[:12]}, the model {model_palette[:12]}: "
            "build the dataset with the model's palette.npy as dataset.palette"
        )
