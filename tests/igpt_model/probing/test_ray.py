"""What can be probed: a model, and a labelled dataset of its resolution and palette. Probes are in integration/."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.probing import ray as probing
from igpt_model.probing.config import ProbeConfig
from igpt_model.probing.ray import _check_labels, _plan, check_fits, probe_on_cluster
from igpt_model.probing.result import NeighbourSheet
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import ShardCache
from tests.conftest import run_here


@pytest.fixture
def bundle(data: Snapshot) -> ModelBundle:
    """An untrained model of the digits' resolution and palette."""
    config = ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=16)
    return ModelBundle(model=ImageGPT(config), palette_K3=data.palette(), classes=data.classes)


def test_a_model_fits_the_dataset_that_it_was_trained_on(bundle: ModelBundle, data: Snapshot) -> None:
    check_fits(bundle, data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda bundle, data: (bundle, replace(data, resolution=16)), "has resolution 16, the model 8: build"),
        (
            lambda bundle, data: (replace(bundle, palette_K3=-bundle.palette_K3), data),
            "build a dataset with the model's",
        ),
        (
            lambda bundle, data: (
                replace(bundle, model=ImageGPT(replace(bundle.model.config, classes=3))),
                data,
            ),
            "gets the class of an image as input",
        ),
    ],
)
def test_another_resolution_palette_or_kind_is_refused_in_one_line(
    change: Callable[[ModelBundle, Snapshot], tuple], expected: str, bundle: ModelBundle, data: Snapshot
) -> None:
    with pytest.raises(IgptError, match=expected) as raised:
        check_fits(*change(bundle, data))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([0, 1], [1], None),
        ([1, 1], [1], "its training images have 1 classes, a probe needs at least 2"),
        ([], [1], "its training images have 0 classes"),
        ([0, 1], [], "no image of its test split has a class"),
    ],
)
def test_too_few_labels_are_refused(train: list, test: list, expected: str | None, data: Snapshot) -> None:
    labels = {"train": np.array(train, int), "validation": np.array([0]), "test": np.array(test, int)}
    if expected is None:
        _check_labels(data, labels)
        return
    with pytest.raises(IgptError, match=expected):
        _check_labels(data, labels)


def test_the_training_images_are_limited_and_the_held_out_ones_are_not(data: Snapshot) -> None:
    everything = _plan(data, ProbeConfig(max_train_images=10**6)).rows
    for split in ("train", "validation", "test"):
        assert [(shard.name, rows) for shard, rows in everything[split]] == [
            (shard.name, shard.samples) for shard in data.of_split(split)
        ]
    limited = _plan(data, ProbeConfig(max_train_images=60)).rows
    assert sum(rows for _, rows in limited["train"]) == pytest.approx(60, abs=len(limited["train"]) / 2)
    assert len(limited["train"]) == len(everything["train"]), "of every shard some"
    assert (limited["validation"], limited["test"]) == (everything["validation"], everything["test"])
    tokens = _plan(data, ProbeConfig(max_train_images=60)).tokens("train")
    assert tokens.tokens_NT.shape == (len(tokens.labels_N), 64) and (tokens.labels_N >= 0).all()


def test_the_driver_of_a_probe_opens_no_shard(
    bundle: ModelBundle, data: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_task = []

    def run(function: Callable[..., Any], calls: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        in_task.append(True)
        results = list(run_here(function, calls, **options))
        in_task.pop()
        yield from results

    class Cache(probing.ShardCache):
        def open(self, *arguments: Any) -> Any:
            assert in_task, "the driver opened a shard: with thousands it would run out of files and disk"
            return super().open(*arguments)

    monkeypatch.setattr(probing, "ShardCache", Cache)
    monkeypatch.setattr(probing.tasks, "map_tasks", run)
    monkeypatch.setattr(probing.tasks, "total_resources", lambda: {"CPU": 1.0})
    config = ProbeConfig(features=str(tmp_path / "features"), strengths=(0.1,), max_iterations=5, max_train_images=60)
    result = probe_on_cluster(bundle, data, config)
    assert result.test_images == data.samples("test") == result.confusion_KK.sum()
    check_keys(result.sheet, data)


def check_keys(sheet: NeighbourSheet | None, data: Snapshot) -> None:
    """Each image of a sheet is what the dataset has under its key."""
    assert sheet is not None
    tokens: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    for split, by_key in tokens.items():
        for shard in data.of_split(split):
            images = ShardCache(data).open(shard)
            by_key |= {images.view.key(row): images.tokens_NHW[row].reshape(-1) for row in range(shard.samples)}
    neighbours = sheet.train_tokens_NKT.reshape(-1, 64)
    keys = [key for near in sheet.train_keys for key in near]
    assert len(sheet.test_keys) == len(sheet.test_tokens_NT) and len(keys) == len(neighbours) > 6
    for split, shown, named in (("test", sheet.test_tokens_NT, sheet.test_keys), ("train", neighbours, keys)):
        assert all((tokens[split][key] == image).all() for key, image in zip(named, shown, strict=True))


@pytest.mark.parametrize(("pooling", "numbers"), [("rows", 8 * 16), ("none", 64 * 16)])
def test_rows_and_pixels_are_probed_as_one_long_vector(
    pooling: str, numbers: int, bundle: ModelBundle, data: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing.tasks, "map_tasks", run_here)
    monkeypatch.setattr(probing.tasks, "total_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(probing.tasks, "node_resources", lambda: {"here": {"CPU": 1.0, "memory": 1e9}})
    config = ProbeConfig(
        features=str(tmp_path), pooling=pooling, strengths=(0.1,), max_iterations=5, max_train_images=60
    )
    result = probe_on_cluster(bundle, data, config)
    assert result.pooling == pooling and result.head.pooling == pooling and result.head.mean_C.shape == (numbers,)
    assert probe_on_cluster(bundle, data, config).shards_computed == 0
    again = probe_on_cluster(bundle, data, replace(config, pooling="mean"))
    assert again.shards_cached == 0 and again.head.mean_C.shape == (16,)
    monkeypatch.setattr(probing.tasks, "node_resources", lambda: {"a": {"CPU": 1.0, "memory": 1e5}, "b": {"CPU": 1.0}})
    with pytest.raises(IgptError, match=rf"pooling is {pooling}: a classifier of {numbers:,} numbers for each of \d+ "):
        probe_on_cluster(bundle, data, config)
