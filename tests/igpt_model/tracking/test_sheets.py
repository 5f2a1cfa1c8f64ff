"""The image sheets for each kind of model."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.tracking import sheets
from igpt_model.tracking.sheets import draw_sheet, sheet_names

COLOURS = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
GREY = 200
HELD_OUT = np.random.default_rng(0).integers(0, 16, (4, 64)).astype(np.uint16)
LABELS = np.array([0, 1, 2, 0])


def make(**fields: object) -> ModelBundle:
    torch.manual_seed(0)
    config = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16, **fields)  # type: ignore[arg-type]
    model = ImageGPT(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return ModelBundle(model=model, palette_K3=COLOURS, classes=("a", "b", "c"))


def cells(sheet: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The images of a sheet, uint8 [rows, columns, 8, 8, 3]."""
    factor = sheet.shape[0] // (rows * 10 + 2)
    assert sheet.shape == (factor * (rows * 10 + 2), factor * (columns * 10 + 2), 3)
    small = sheet[::factor, ::factor]
    return small[2:, 2:].reshape(rows, 10, columns, 10, 3).transpose(0, 2, 1, 3, 4)[:, :, :8, :8]


def draw(bundle: ModelBundle, name: str) -> np.ndarray:
    assert name in sheet_names(bundle)
    return draw_sheet(bundle, name, HELD_OUT, LABELS, 3)


@pytest.mark.parametrize("classes", [None, 3])
def test_samples_and_completions(classes: int | None) -> None:
    bundle = make(classes=classes)
    originals = bundle.pictures(HELD_OUT)
    samples = cells(draw(bundle, "samples"), classes or 6, 10)
    assert len(np.unique(samples.reshape(-1, 192), axis=0)) == samples.shape[0] * 10
    images = cells(draw(bundle, "completions"), 4, 7)
    assert np.array_equal(images[:, 0], originals)
    assert np.array_equal(images[:, 1, :4], originals[:, :4])
    assert (images[:, 1, 4:] == GREY).all()
    assert all(np.array_equal(images[:, 2 + number, :4], originals[:, :4]) for number in range(5))


def test_upscaled_images() -> None:
    bundle = make(low_resolution=2)
    images = cells(draw(bundle, "upscaled"), 4, 7)
    assert np.array_equal(images[:, 0], bundle.pictures(HELD_OUT))
    small = bundle.pictures(bundle.shrink(images[:, 0]))
    assert np.array_equal(images[:, 1], small.repeat(4, 1).repeat(4, 2))
    assert not np.array_equal(images[:, 2], images[:, 3])


def test_reconstructions_change_only_masked_pixels() -> None:
    bundle = make(objective="masked")
    assert sheet_names(bundle) == ("reconstructions",)
    images = cells(draw(bundle, "reconstructions"), 4, 7)
    originals = bundle.pictures(HELD_OUT)
    assert np.array_equal(images[:, 0], originals)
    for number in (1, 3, 5):
        masked = (images[:, number] != originals).any(3)
        assert 0.05 < masked.mean() < 0.3
        assert (images[:, number][masked] == GREY).all()
        assert np.array_equal(images[:, number + 1][~masked], originals[~masked])


def test_surprise_is_black_where_certain_and_white_at_chance() -> None:
    bundle = make()
    nats = np.zeros((4, 64))
    nats[:, 1] = np.log(16)
    nats[:, 2] = 100
    images = cells(sheets.surprise_sheet(bundle, HELD_OUT, nats), 4, 2)[:, 1].reshape(4, 64, 3)
    assert (images[:, [1, 2]] == 255).all()
    assert not images[:, 3:].any()


def test_a_png_holds_the_picture() -> None:
    picture = make().pictures(HELD_OUT)[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sheets.to_png(picture)))), picture)
