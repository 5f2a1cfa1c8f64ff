"""Model inputs computed on the device: augmentation, small versions, masks, and random numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_model.config import PretrainConfig
from igpt_model.data.augment import augment
from igpt_model.data.batches import Preparation
from igpt_model.data.shard_cache import Images
from igpt_model.model.losses import draw_masks
from igpt_model.model.low_resolution import Reducer
from igpt_model.model.randomness import uniform
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.images.decode import centre_square

SIDE = 16


@pytest.fixture(scope="module")
def colours(photos: np.ndarray) -> np.ndarray:
    histogram = palette.ColourHistogram()
    histogram.add(photos)
    return palette.fit(histogram, 64, seed=0)


@pytest.fixture(scope="module")
def table(colours: np.ndarray) -> np.ndarray:
    return palette.compute_lookup_table(colours)


@pytest.fixture(scope="module")
def pictures(photos: np.ndarray) -> np.ndarray:
    """Real pictures of 16x16, uint8 [120, 16, 16, 3]."""
    return np.stack([centre_square(Image.fromarray(photo), SIDE) for photo in photos])


def sequences(pictures: np.ndarray, table: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(palette.quantize(pictures, table).reshape(len(pictures), -1).astype(np.int64))


@pytest.mark.parametrize(("flip", "padding"), [(True, 0), (False, 2), (True, 4), (True, 7)])
def test_augmenting_tokens_is_augmenting_pixels_and_quantizing(
    pictures: np.ndarray, table: np.ndarray, flip: bool, padding: int
) -> None:
    tokens, numbers = sequences(pictures, table), torch.arange(1000, 1000 + len(pictures))
    augmented = augment(tokens, numbers, seed=7, flip=flip, crop_padding=padding)
    # The same random choices, applied to an image whose tokens are its positions.
    positions = augment(
        torch.arange(SIDE**2).expand(len(pictures), -1), numbers, seed=7, flip=flip, crop_padding=padding
    )
    flipped, offsets = 0, set()
    for picture, position, tokens_T in zip(pictures, positions.view(-1, SIDE, SIDE), augmented, strict=True):
        padded = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        padded_positions = np.pad(np.arange(SIDE**2).reshape(SIDE, SIDE), padding, mode="reflect")
        candidates = {}
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                for mirrored in (False, True)[: 1 + flip]:
                    window = padded_positions[top : top + SIDE, left : left + SIDE][:, :: -1 if mirrored else 1]
                    if np.array_equal(window, position.numpy()):
                        candidates[(top, left, mirrored)] = window
        ((top, left, mirrored),) = candidates
        pixels = padded[top : top + SIDE, left : left + SIDE][:, :: -1 if mirrored else 1]
        assert np.array_equal(palette.quantize(pixels, table).reshape(-1), tokens_T.numpy())
        flipped += mirrored
        offsets.add((top, left))
    assert not flip or 0.3 < flipped / len(pictures) < 0.7
    assert len(offsets) > min((2 * padding + 1) ** 2, len(pictures)) // 2


def test_small_versions_of_tokens_equal_those_of_pictures(
    pictures: np.ndarray, colours: np.ndarray, table: np.ndarray
) -> None:
    tokens = sequences(pictures, table)
    seen = palette.to_pixels(tokens.numpy().reshape(-1, SIDE, SIDE), colours)
    for low in (2, 4, 8):
        reduce = Reducer(colours, resolution=SIDE, low_resolution=low, device=torch.device("cpu"))
        small = np.stack([centre_square(Image.fromarray(picture), low) for picture in seen])
        assert torch.equal(reduce(tokens), sequences(small, table))


def test_small_versions_by_thirds(photos: np.ndarray, colours: np.ndarray, table: np.ndarray) -> None:
    pictures = np.stack([centre_square(Image.fromarray(photo), 48) for photo in photos[:20]])
    tokens = sequences(pictures, table)
    seen = palette.to_pixels(tokens.numpy().reshape(-1, 48, 48), colours)
    for low in (8, 16):
        reduce = Reducer(colours, resolution=48, low_resolution=low, device=torch.device("cpu"))
        small = np.stack([centre_square(Image.fromarray(picture), low) for picture in seen])
        assert torch.equal(reduce(tokens), sequences(small, table))


def test_masks_have_their_share_and_are_never_empty() -> None:
    numbers = torch.arange(4000)
    masks = draw_masks(numbers, 1024, seed=0, purpose="test", fraction=0.15)
    assert masks.float().mean().item() == pytest.approx(0.15, abs=0.001)
    assert (masks.float().mean(0) - 0.15).abs().max() < 0.03
    few = draw_masks(numbers, 4, seed=0, purpose="test", fraction=0.15)
    assert few.any(1).all()
    assert (
        0.15**2 < few[:, :2].all(1).float().mean().item() < 0.04
    )  # 0.0225: an empty mask gets a single pixel, so no pairs
    assert torch.equal(masks[100:200], draw_masks(numbers[100:200], 1024, seed=0, purpose="test", fraction=0.15))
    assert not torch.equal(masks, draw_masks(numbers, 1024, seed=1, purpose="test", fraction=0.15))


def test_random_numbers_are_uniform_and_independent() -> None:
    drawn = uniform(3, "test", torch.arange(2000), 50)
    assert drawn.min() >= 0 and drawn.max() < 1
    histogram = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert (histogram - 0.05).abs().max() < 0.003
    for pair in (drawn[:, :2].T, torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()])):
        assert abs(float(torch.corrcoef(pair.double())[0, 1])) < 0.06
    assert torch.equal(uniform(3, "test", torch.tensor([77]), 10, first=20)[0], drawn[77, 20:30])
    for other in (uniform(4, "test", torch.arange(2000), 50), uniform(3, "tests", torch.arange(2000), 50)):
        assert (other == drawn).float().mean() < 1e-3


def test_the_reference_numbers_are_those_of_splitmix64() -> None:
    """The mixing is that of splitmix64: from state 0 its first outputs are known."""
    from igpt_model.model.randomness import _GAMMA, _scramble

    states = torch.arange(1, 4) * _GAMMA
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % (1 << 64) for value in _scramble(states).tolist()] == expected


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
    whole = preparation.for_training(images, 500)
    part = preparation.for_training(part_of(images, slice(40, 60)), 540)
    rows = slice(40, 60)
    assert torch.equal(part.tokens_BT, whole.tokens_BT[rows])
    for part_value, whole_value in (
        (part.condition.labels_B, whole.condition.labels_B),
        (part.condition.low_BP, whole.condition.low_BP),
        (part.masked_BT, whole.masked_BT),
    ):
        assert (part_value is None) == (whole_value is None)
        assert part_value is None or (whole_value is not None and torch.equal(part_value, whole_value[rows]))
    held_out = preparation.for_evaluation(images, 0)
    assert np.array_equal(held_out.tokens_BT.numpy(), images.tokens_NT)
    if whole.masked_BT is not None and held_out.masked_BT is not None:
        assert not torch.equal(whole.masked_BT, held_out.masked_BT)


def test_images_without_a_class_are_refused_by_a_class_conditional_model(
    pictures: np.ndarray, colours: np.ndarray, table: np.ndarray
) -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", class_conditional=True)
    model = config.model.for_images(resolution=SIDE, colours=64, classes=3)
    preparation = Preparation(config, model, colours, torch.device("cpu"))
    images = images_of(pictures, table)
    images.labels_N[5] = -1
    with pytest.raises(IgptError, match="have no class"):
        preparation.for_training(images, 0)
    with pytest.raises(IgptError, match="crop_padding is 16"):
        Preparation(config.with_fields(crop_padding=16), model, colours, torch.device("cpu"))
