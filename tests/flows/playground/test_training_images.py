"""Nearest training images are those whose cached features are nearest; without a cache there are none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nicegui import Client
from nicegui.page import page

from flows.playground import training_images, worker
from flows.playground.protocol import Look
from flows.playground.results import ModelResults
from igpt_model.inference.features import image_features
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.probing.feature_cache import FeatureCache, cache_of, network_digest
from igpt_model.probing.probed import ProbedModel
from igpt_model.runs import record
from igpt_model.runs.record import RunRecord
from pipeline.dataset import verified_shards
from pipeline.dataset.snapshot import Snapshot
from tests.igpt_model.training.test_loop import digits_snapshot, short_training

LAYER = 1


@pytest.fixture
def data(tmp_path: Path) -> Snapshot:
    return digits_snapshot(tmp_path)


@pytest.fixture
def bundle(data: Snapshot) -> ModelBundle:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ImageGPT(ModelConfig(layers=2, width=16, heads=2, resolution=8, colours=16)).eval()
    return ModelBundle(model=model, palette_K3=data.palette(), classes=data.classes)


def fill_cache(bundle: ModelBundle, data: Snapshot, *, rows: int, shards: int, on_gpu: bool = False) -> None:
    cache = FeatureCache(url=cache_of(data.dataset), network=network_digest(bundle), layers=3, on_gpu=on_gpu)
    for shard in data.of_split("train")[:shards]:
        view = verified_shards.read(data, shard)
        tokens_NT = view.tokens_NHW[:rows].reshape(-1, 64).astype(np.int64)
        features_LNC = image_features(bundle, torch.from_numpy(tokens_NT)).numpy()
        cache.write(shard, rows, [features_LNC], count=len(tokens_NT))


def open_run(bundle: ModelBundle, data: Snapshot, folder: Path) -> worker.Opened:
    """A run's folder with a model, as a page opens it."""
    folder.mkdir()
    ProbedModel(bundle=bundle, best_layer=LAYER).save(folder)
    config = short_training(data, folder)
    record.write(str(folder), RunRecord(config=record.pinned(config, data), mlflow_run=None))
    return worker.open_model(str(folder), folder)


def test_a_training_image_is_its_own_nearest_one(bundle: ModelBundle, data: Snapshot, tmp_path: Path) -> None:
    fill_cache(bundle, data, rows=20, shards=2)
    fill_cache(bundle, data, rows=30, shards=1)
    found = training_images.cached(bundle, LAYER, data.dataset, data.number)
    assert found is not None and len(found.features_NC) == 50
    opened = open_run(bundle, data, tmp_path / "run")
    for row in (3, 29, 30, 49):
        near = worker.look(opened, Look(picture_RR3=found.pictures_NRR3[row], label=None)).nearest
        assert len(near) == 6 and np.array_equal(near[0].picture_RR3, found.pictures_NRR3[row])
        assert near[0].class_name == found.classes_N[row] and near[0].cosine == pytest.approx(1)
        cosines = [image.cosine for image in near]
        assert cosines == sorted(cosines, reverse=True)


def test_features_of_a_gpu_serve_too(bundle: ModelBundle, data: Snapshot) -> None:
    fill_cache(bundle, data, rows=10, shards=1, on_gpu=True)
    found = training_images.cached(bundle, LAYER, data.dataset, data.number)
    assert found is not None and len(found.classes_N) == 10


def test_there_are_none_without_a_cache(bundle: ModelBundle, data: Snapshot, tmp_path: Path) -> None:
    other = replace(bundle, model=ImageGPT(bundle.model.config).eval())
    fill_cache(other, data, rows=10, shards=1)
    assert training_images.cached(bundle, LAYER, data.dataset, data.number) is None
    assert training_images.cached(bundle, LAYER, str(tmp_path / "gone"), 1) is None
    opened = open_run(bundle, data, tmp_path / "run")
    assert worker.look(opened, Look(picture_RR3=np.zeros((8, 8, 3), np.uint8), label=None)).nearest == ()


def test_the_page_shows_them_with_their_classes(bundle: ModelBundle, data: Snapshot, tmp_path: Path) -> None:
    fill_cache(bundle, data, rows=20, shards=1)
    opened = open_run(bundle, data, tmp_path / "run")
    picture_RR3 = np.zeros((8, 8, 3), np.uint8)
    seen = worker.look(opened, Look(picture_RR3=picture_RR3, label=None))
    with Client(page("/")) as client:
        ModelResults(opened.facts, is_named=False, on_use=lambda _: None).show_seen(picture_RR3, seen)
        alts = [str(element.props.get("alt", "")) for element in client.elements.values()]
    shown = [alt for alt in alts if alt.startswith("Training picture")]
    assert len(shown) == 6
    assert shown[0] == f"Training picture 1, class {seen.nearest[0].class_name}, likeness {seen.nearest[0].cosine:.2f}"
