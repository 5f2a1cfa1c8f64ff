"""Model inputs computed on the device: augmentation, small versions, masks, and random numbers."""

import numpy as np
import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Preparation
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.samples.shard_cache import Images
from tests.igpt_model.conftest import SIDE


def images_of(pictures: np.ndarray, table: np.ndarray) -> Images:
    return Images(
        tokens_NT=palette.quantize(pictures, table).reshape(len(pictures), -1),
        labels_N=np.arange(len(pictures)) % 3,
    )


def part_of(images: Images, rows: slice) -> Images:
    return Images(tokens_NT=images.tokens_NT[rows], labels_N=images.labels_N[rows])


@pytest.mark.parametrize(
    "fields",
    [{"objective": "masked"}, {"class_conditional": True, "flip": True}, {"low_resolution": 4, "crop_padding": 2}],
)
def test_the_inputs_of_an_image_do_not_depend_on_its_batch(
    pictures: np.ndarray, colours: np.ndarray, table: np.ndarray, fields: dict
) -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", **fields)
    model = config.model.for_images(resolution=SIDE, colours=64, classes=3)
    preparation = Preparation(config, model, colours, torch.device("cpu"))
    images = images_of(pictures, table)
    whole = preparation.for_training(preparation.on_host(images), 500)
    part = preparation.for_training(preparation.on_host(part_of(images, slice(40, 60))), 540)
    rows = slice(40, 60)
    assert torch.equal(part.tokens_BT, whole.tokens_BT[rows])
    for part_value, whole_value in (
        (part.condition.labels_B, whole.condition.labels_B),
        (part.condition.low_BP, whole.condition.low_BP),
        (part.masked_BT, whole.masked_BT),
    ):
        assert (part_value is None) == (whole_value is None)
        assert part_value is None or (whole_value is not None and torch.equal(part_value, whole_value[rows]))
    held_out = preparation.for_evaluation(preparation.on_host(images), np.arange(len(pictures)))
    assert np.array_equal(held_out.tokens_BT.numpy(), images.tokens_NT)
    places = np.array([3, 17, 90])
    some = Images(tokens_NT=images.tokens_NT[places], labels_N=images.labels_N[places])
    few = preparation.for_evaluation(preparation.on_host(some), places)
    if few.masked_BT is not None and held_out.masked_BT is not None:
        assert torch.equal(few.masked_BT, held_out.masked_BT[torch.from_numpy(places)])
    if whole.masked_BT is not None and held_out.masked_BT is not None:
        assert not torch.equal(whole.masked_BT, held_out.masked_BT)


def test_the_last_steps_see_the_images_as_they_are(
    pictures: np.ndarray, colours: np.ndarray, table: np.ndarray
) -> None:
    fields = {"flip": True, "crop_padding": 2, "steps": 9, "global_batch": 40, "augmented_share": 0.66}
    config = PretrainConfig.from_fields(runs="r", preset="tiny", **fields)
    model = config.model.for_images(resolution=SIDE, colours=64, classes=3)
    preparation = Preparation(config, model, colours, torch.device("cpu"))
    throughout = Preparation(config.with_fields(augmented_share=1.0), model, colours, torch.device("cpu"))
    images = images_of(pictures, table)
    for step in range(9):
        for rows in (slice(0, 20), slice(20, 40)):  # two workers
            part, position = preparation.on_host(part_of(images, rows)), step * 40 + rows.start
            made = preparation.for_training(part, position).tokens_BT
            if step < 6:
                assert torch.equal(made, throughout.for_training(part, position).tokens_BT)
            assert np.array_equal(made.numpy(), images.tokens_NT[rows]) == (step >= 6)


def test_a_model_is_told_how_images_were_augmented_while_they_are(
    pictures: np.ndarray, colours: np.ndarray, table: np.ndarray
) -> None:
    fields = {"crop_padding": 1, "steps": 9, "global_batch": 40, "augmented_share": 0.66, "tell_augmentation": True}
    config = PretrainConfig.from_fields(runs="r", preset="tiny", **fields)
    model = config.model.for_images(resolution=SIDE, colours=64, classes=3)
    images = images_of(pictures, table)

    def offsets(config: PretrainConfig, position: int) -> torch.Tensor | None:
        preparation = Preparation(config, model, colours, torch.device("cpu"))
        made = preparation.for_training(preparation.on_host(images), position)
        return made.condition.start_offsets_BC

    told = offsets(config, 0)
    assert told is not None and told.shape == (len(images.labels_N), model.width) and told.any()
    assert offsets(config, 6 * 40) is None and offsets(config.with_fields(tell_augmentation=False), 0) is None
    assert offsets(config.with_fields(crop_padding=0), 0) is None
    preparation = Preparation(config, model, colours, torch.device("cpu"))
    held_out = preparation.for_evaluation(preparation.on_host(images), np.arange(len(images.labels_N)))
    assert held_out.condition.start_offsets_BC is None


def test_images_without_a_class_are_refused_by_a_class_conditional_model(
    pictures: np.ndarray, colours: np.ndarray, table: np.ndarray
) -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", class_conditional=True)
    model = config.model.for_images(resolution=SIDE, colours=64, classes=3)
    preparation = Preparation(config, model, colours, torch.device("cpu"))
    images = images_of(pictures, table)
    images.labels_N[5] = -1
    with pytest.raises(IgptError, match="have no class"):
        preparation.on_host(images)
    with pytest.raises(IgptError, match="crop_padding is 16"):
        Preparation(config.with_fields(crop_padding=16), model, colours, torch.device("cpu"))
