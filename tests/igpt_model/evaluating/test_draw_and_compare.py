"""Samples of a model are drawn as the sampler draws them, and compared with the images of the dataset."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_model.config import DataSettings
from igpt_model.evaluating.draw_and_compare import draw_and_compare
from igpt_model.inference.sample import Drawing, draw
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.dataset import verified_shards
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import build_here, digits_snapshot

CONFIG = ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=16)


@pytest.fixture(scope="module")
def split_in_three(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """300 digits, a fifth of them for testing."""
    return digits_snapshot(tmp_path_factory.mktemp("three"), test_fraction=0.2)


def bundle(data: Snapshot, config: ModelConfig = CONFIG) -> ModelBundle:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ImageGPT(config).eval()
    return ModelBundle(model=model, palette_K3=data.palette(), classes=data.classes)


def tokens(data: Snapshot, split: str) -> np.ndarray:
    views = [verified_shards.read(data, shard) for shard in data.of_split(split)]
    return np.concatenate([view.tokens_NHW.reshape(len(view.tokens_NHW), -1) for view in views])


def test_it_compares_what_the_sampler_draws_with_the_images_of_the_dataset(split_in_three: Snapshot) -> None:
    data, untrained = split_in_three, bundle(split_in_three)
    made = draw_and_compare(untrained, data, DataSettings(), count=40, seed=5)
    assert made is not None and (made.samples, made.held_out_images) == (40, data.samples("test"))
    assert made == draw_and_compare(untrained, data, DataSettings(), count=40, seed=5)
    # The head of a network without training gives all colours the same probability.
    assert made.sample_distance > 2 * made.held_out_distance and made.sure_samples < made.sure_held_out
    drawn, train, test = (
        untrained.pictures(some_NT).astype(float)
        for some_NT in (draw(untrained.model, 40, Drawing(seed=5)).numpy(), tokens(data, "train"), tokens(data, "test"))
    )
    for images, distance in ((drawn, made.sample_distance), (test, made.held_out_distance)):
        nearest = [np.sqrt(np.square(train - image).mean((1, 2, 3))).min() for image in images]
        assert distance == pytest.approx(np.median(nearest), rel=1e-5)


def test_distances_are_also_to_what_augmentation_made_of_the_images(split_in_three: Snapshot) -> None:
    data, untrained = split_in_three, bundle(split_in_three)
    plain = draw_and_compare(untrained, data, DataSettings(), count=20)
    augmented = draw_and_compare(untrained, data, DataSettings(crop_padding=2, flip=True), count=20)
    assert plain is not None and augmented is not None
    assert augmented.held_out_distance < plain.held_out_distance
    assert augmented.sample_distance < plain.sample_distance
    assert augmented.class_shares == plain.class_shares  # the classifier knows the images as they are


def test_images_without_classes_give_no_classifier(split_in_three: Snapshot, tmp_path: Path) -> None:
    for number, picture in enumerate(bundle(split_in_three).pictures(tokens(split_in_three, "train")[:60])):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    data = build_here(tmp_path, tmp_path / "dataset", test_fraction=0.2)
    assert draw_and_compare(bundle(data), data, DataSettings(), count=5) is None


@pytest.mark.parametrize("fields", [{"objective": "masked"}, {"low_resolution": 4}, {"classes": 10}])
def test_a_model_that_draws_no_images_by_itself_has_no_samples(split_in_three: Snapshot, fields: dict) -> None:
    assert (
        draw_and_compare(bundle(split_in_three, replace(CONFIG, **fields)), split_in_three, DataSettings(), count=5)
        is None
    )


def test_a_model_of_other_images_is_refused(split_in_three: Snapshot) -> None:
    with pytest.raises(IgptError, match="resolution"):
        draw_and_compare(bundle(split_in_three, replace(CONFIG, resolution=4)), split_in_three, DataSettings(), count=5)
