"""The image sheets for each kind of model."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_model.inference import sample
from igpt_model.inference.sample import Drawing
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import Condition, ImageGPT
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
    """The images of a sheet, uint8 [rows, columns, 8, 8, 3], without the texts to their left."""
    factor = sheet.shape[0] // (rows * 10 + 2)
    width = factor * (columns * 10 + 2)
    assert sheet.shape[0] == factor * (rows * 10 + 2) and sheet.shape[1] >= width
    small = sheet[::factor, sheet.shape[1] - width :: factor]
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


def margin(sheet: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The texts of a sheet's rows, uint8 [rows, H, W, 3]."""
    factor = sheet.shape[0] // (rows * 10 + 2)
    left = sheet[: rows * 10 * factor, : sheet.shape[1] - factor * (columns * 10 + 2)]
    return left.reshape(rows, 10 * factor, *left.shape[1:])


@pytest.mark.parametrize("columns", [3, 4, 1])
def test_rows_of_samples_have_one_class_and_its_name(columns: int) -> None:
    bundle = make(classes=3)
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    sheet = sheets.sample_sheet(bundle, Drawing(seed=3), count=7, columns=columns, labels_N=labels)
    images = bundle.pictures(
        sample.draw(bundle.model, 7, Drawing(seed=3), condition=Condition(labels_B=torch.from_numpy(labels))).numpy()
    )
    of_row = [label for label in range(3) for _ in range(0, (labels == label).sum(), columns)]
    rows = len(of_row)
    shown = cells(sheet, rows, columns).reshape(-1, 8, 8, 3)
    filled = shown[(shown != 255).any((1, 2, 3))]
    assert np.array_equal(filled, images)
    texts = margin(sheet, rows, columns)
    assert texts.shape[2] > 0 and all((text < 128).any() for text in texts)
    for i in range(rows):
        for j in range(rows):
            assert np.array_equal(texts[i], texts[j]) == (of_row[i] == of_row[j])


def test_names_of_classes_are_drawn_on_one_line_however_long_and_strange_they_are() -> None:
    plain = make(classes=3)
    for name in ("\x1b[31m\n\n", "x" * 1000, "ß – ¿qué?", "日本語", "", "0"):
        bundle = replace(plain, classes=(name, "b", "c"))
        sheet = sheets.sample_sheet(bundle, Drawing(), count=3, columns=1, labels_N=np.arange(3))
        cells(sheet, 3, 1)
        assert sheet.shape[1] < 2000


def test_a_row_of_completions_does_not_depend_on_the_rows_above_it() -> None:
    for fields, name in (({}, "completions"), ({"low_resolution": 2}, "upscaled")):
        bundle = make(**fields)
        both = cells(draw_sheet(bundle, name, HELD_OUT[:2], LABELS[:2], 3), 2, 7)
        swapped = cells(draw_sheet(bundle, name, HELD_OUT[1::-1], LABELS[1::-1], 3), 2, 7)
        alone = cells(draw_sheet(bundle, name, HELD_OUT[1:2], LABELS[1:2], 3), 1, 7)
        assert np.array_equal(both, swapped[::-1]) and np.array_equal(both[1:], alone)


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
