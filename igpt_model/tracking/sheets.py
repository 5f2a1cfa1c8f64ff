"""Image sheets of a model's outputs: samples, completions, upscaled images and reconstructions."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from igpt_model.inference.sample import Drawing, complete, draw
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.losses import draw_masks
from igpt_model.model.network import Condition
from igpt_model.probing.result import NeighbourSheet
from igpt_model.runs import open_model
from pipeline.printable import printable
from pipeline.progress import Progress, silent

_GAP = 2  # pixels between images, before scaling
_LONG_SIDE = 900  # approximate size in pixels that sheets are enlarged to
_WHITE, _GREEN, _RED = (255, 255, 255), (0, 160, 60), (220, 40, 40)
_GREY = 200  # value of unknown pixels
_FONT_SIZES = (8, 20)  # pixels
_MAX_LABEL = 30  # characters


def sheet(rows: list[list[np.ndarray]], labels: Sequence[str] | None = None) -> np.ndarray:
    """Arrange images, uint8 [H, W, 3] each, on white; enlarged by an integer factor without smoothing.

    `labels` are written to the left of the rows, as much as fits into a line.
    """
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = _GAP + i * (height + _GAP), _GAP + j * (width + _GAP)
            canvas[top : top + height, left : left + width] = image
    factor = max(1, _LONG_SIDE // max(canvas.shape[:2]))
    enlarged = canvas.repeat(factor, 0).repeat(factor, 1)
    if labels is None:
        return enlarged
    return np.concatenate([_margin(labels, (height + _GAP) * factor, len(enlarged)), enlarged], 1)


def _margin(labels: Sequence[str], row: int, height: int) -> np.ndarray:
    """A column of texts, uint8 [height, W, 3], each in the middle of its row of `row` pixels."""
    smallest, largest = _FONT_SIZES
    font = ImageFont.load_default(max(smallest, min(largest, row - 2)))
    texts = [printable(label)[:_MAX_LABEL] for label in labels]
    margin = max(smallest, row // 8)
    width = 2 * margin + round(max(font.getlength(text) for text in texts))
    image = Image.new("RGB", (width, height), _WHITE)
    for number, text in enumerate(texts):
        ImageDraw.Draw(image).text((margin, number * row + row // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(image)


def to_png(image: np.ndarray) -> bytes:
    """Encode an image, uint8 [H, W, 3], as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def sample_sheet(
    bundle: ModelBundle,
    drawing: Drawing,
    *,
    count: int,
    columns: int,
    labels_N: np.ndarray | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Samples of the model, not selected. With the classes `labels_N`, int64 [count], a row is of one class, named."""
    drawn_NT = draw(bundle.model, count, drawing, condition=_condition(bundle, labels_N), progress=progress)
    images = bundle.pictures(drawn_NT.cpu().numpy())
    if labels_N is None:
        return sheet(_wrapped(images, columns))
    rows, names = [], []
    for label in np.unique(labels_N).tolist():
        of_class = _wrapped(images[labels_N == label], columns)
        rows += of_class
        names += [_class_name(bundle, label)] * len(of_class)
    return sheet(rows, names)


def _wrapped(images: np.ndarray, columns: int) -> list[list[np.ndarray]]:
    return [list(images[start : start + columns]) for start in range(0, len(images), columns)]


def _class_name(bundle: ModelBundle, label: int) -> str:
    """The number and the name of a class, one of them where they are the same."""
    name = bundle.classes[label] if label < len(bundle.classes) else str(label)
    return name if name == str(label) else f"{label} {name}"


def completion_sheet(
    bundle: ModelBundle,
    tokens_NT: np.ndarray,
    known_T: np.ndarray,
    drawing: Drawing,
    *,
    draws: int,
    labels_N: np.ndarray | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """A row per image: the original, its known pixels, and completions of them."""
    tokens_BT = _tensor(bundle, tokens_NT).repeat_interleave(draws, 0)
    known_BT = _tensor(bundle, known_T).bool().expand(tokens_BT.shape)
    condition = _condition(bundle, None if labels_N is None else np.repeat(labels_N, draws))
    drawn_BT = complete(bundle.model, tokens_BT, known_BT, drawing, condition=condition, draws=draws, progress=progress)
    originals = bundle.pictures(tokens_NT)
    given = originals.copy()
    given.reshape(len(given), -1, 3)[:, ~known_T] = _GREY
    return _beside([originals, given], bundle.pictures(drawn_BT.cpu().numpy()), draws)


def upscaling_sheet(
    bundle: ModelBundle,
    originals: np.ndarray,
    low_NP: np.ndarray,
    drawing: Drawing,
    *,
    draws: int,
    labels_N: np.ndarray | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """A row per image: the original, uint8 [N, H, W, 3], its small version, and upscaled samples of it."""
    low_BP = _tensor(bundle, low_NP).repeat_interleave(draws, 0)
    condition = _condition(bundle, None if labels_N is None else np.repeat(labels_N, draws))
    condition = Condition(labels_B=condition.labels_B, low_BP=low_BP)
    drawn_BT = draw(bundle.model, len(low_BP), drawing, condition=condition, draws=draws, progress=progress)
    small = bundle.pictures(low_NP)
    factor = originals.shape[1] // small.shape[1]
    enlarged = small.repeat(factor, 1).repeat(factor, 2)
    return _beside([originals, enlarged], bundle.pictures(drawn_BT.cpu().numpy()), draws)


@torch.inference_mode()
def reconstruction_sheet(
    bundle: ModelBundle, tokens_NT: np.ndarray, *, fraction: float, draws: int, seed: int = 0
) -> np.ndarray:
    """A row per image: the original, then for each of `draws` masks the masked image and its reconstruction.

    A masked model cannot sample images; the reconstruction takes the most likely colour of each masked pixel.
    """
    tokens_BT = _tensor(bundle, tokens_NT).repeat_interleave(draws, 0)
    numbers_B = torch.arange(len(tokens_BT), device=tokens_BT.device)
    masked_BT = draw_masks(numbers_B, tokens_BT.shape[1], seed=seed, purpose="reconstruction", fraction=fraction)
    likeliest_BT = bundle.model(tokens_BT, masked_BT=masked_BT).argmax(2)
    masked = bundle.pictures(tokens_BT.cpu().numpy())
    masked.reshape(len(masked), -1, 3)[masked_BT.cpu().numpy()] = _GREY
    filled = bundle.pictures(torch.where(masked_BT, likeliest_BT, tokens_BT).cpu().numpy())
    pairs = np.stack([masked, filled], 1).reshape(-1, *masked.shape[1:])
    return _beside([bundle.pictures(tokens_NT)], pairs, 2 * draws)


def surprise_sheet(bundle: ModelBundle, tokens_NT: np.ndarray, nats_NT: np.ndarray) -> np.ndarray:
    """A row per image: the image, and its negative log-likelihood by pixel, from black (0) to white (ln K: chance)."""
    images = bundle.pictures(tokens_NT)
    shades = np.clip(nats_NT / np.log(bundle.model.config.colours), 0, 1) * 255
    maps = np.rint(shades).astype(np.uint8).reshape(images.shape[:3])[..., None].repeat(3, 3)
    return _beside([images], maps, 1)


def neighbour_sheet(bundle: ModelBundle, neighbours: NeighbourSheet) -> np.ndarray:
    """A row per test image: the image, a gap, and its nearest training images.

    Neighbours of the same class have a green frame, others a red one.
    """
    rows = []
    for number, test_T in enumerate(neighbours.test_tokens_NT):
        (image,) = bundle.pictures(test_T[None])
        row = [_framed(image, _WHITE), np.full_like(_framed(image, _WHITE), 255)]
        same_class = neighbours.train_labels_NK[number] == neighbours.test_labels_N[number]
        images = bundle.pictures(neighbours.train_tokens_NKT[number])
        row += [_framed(near, _GREEN if same else _RED) for near, same in zip(images, same_class, strict=True)]
        rows.append(row)
    return sheet(rows)


def _framed(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    framed = np.empty((image.shape[0] + 2, image.shape[1] + 2, 3), np.uint8)
    framed[:] = colour
    framed[1:-1, 1:-1] = image
    return framed


def sheet_names(bundle: ModelBundle) -> tuple[str, ...]:
    """The names of the sheets for this kind of model."""
    if bundle.model.config.objective == "masked":
        return ("reconstructions",)
    if bundle.model.config.low_resolution is not None:
        return ("upscaled",)
    return "samples", "completions"


def draw_checkpoint(url: str, tokens_NT: np.ndarray, labels_N: np.ndarray, seed: int) -> tuple[str, np.ndarray]:
    """Draw the first sheet for the model of a checkpoint on the CPU; returns its name and the image."""
    bundle = open_model.load_model(url)
    name = sheet_names(bundle)[0]
    return name, draw_sheet(bundle, name, tokens_NT, labels_N, seed)


def draw_sheet(
    bundle: ModelBundle, name: str, tokens_NT: np.ndarray, labels_N: np.ndarray, seed: int, device: str = "cpu"
) -> np.ndarray:
    """Draw one sheet of a model, given held-out images; runs as one task."""
    bundle = open_model.on_device(bundle, device)
    config, drawing = bundle.model.config, Drawing(seed=seed)
    labels = None if config.classes is None else labels_N
    if name == "reconstructions":
        return reconstruction_sheet(bundle, tokens_NT, fraction=0.15, draws=3, seed=seed)
    if name == "upscaled":
        originals = bundle.pictures(tokens_NT)
        low_NP = bundle.shrink(originals)
        return upscaling_sheet(bundle, originals, low_NP, drawing, draws=5, labels_N=labels)
    if name == "completions":
        known_T = np.arange(config.positions) < config.resolution // 2 * config.resolution  # the upper half
        return completion_sheet(bundle, tokens_NT, known_T, drawing, draws=5, labels_N=labels)
    columns = 10
    classes = None if config.classes is None else np.arange(min(config.classes, 10)).repeat(columns)
    count = 6 * columns if classes is None else len(classes)
    return sample_sheet(bundle, drawing, count=count, columns=columns, labels_N=classes)


def _beside(given: list[np.ndarray], drawn: np.ndarray, draws: int) -> np.ndarray:
    """A sheet with a row per image: its input images, then its `draws` drawn images."""
    count = len(given[0])
    return sheet([[*(images[i] for images in given), *drawn[i * draws : (i + 1) * draws]] for i in range(count)])


def _tensor(bundle: ModelBundle, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(bundle.model.positions.device)


def _condition(bundle: ModelBundle, labels_B: np.ndarray | None) -> Condition:
    return Condition(labels_B=None if labels_B is None else _tensor(bundle, labels_B))
