"""Pictures of what a model does: a sheet of samples, and completions beside what they complete."""

import io

import numpy as np
import torch
from PIL import Image

from igpt_model.model_folder import ModelFolder
from igpt_model.sample import complete, draw
from pipeline import palette as palettes

_GAP = 2  # pixels between images, before scaling
_LONG_SIDE = 900  # pixels a sheet is enlarged to, about


def sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Arrange images, uint8 [H, W, 3] each, on white; enlarged by a whole factor without smoothing."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = _GAP + i * (height + _GAP), _GAP + j * (width + _GAP)
            canvas[top : top + height, left : left + width] = image
    factor = max(1, _LONG_SIDE // max(canvas.shape[:2]))
    return canvas.repeat(factor, 0).repeat(factor, 1)


def to_png(image: np.ndarray) -> bytes:
    """The PNG file of a picture, uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def sample_sheet(folder: ModelFolder, *, rows: int = 6, columns: int = 10, seed: int = 0) -> np.ndarray:
    """Images drawn from the model, nothing chosen among them."""
    tokens_BT = draw(folder.model, rows * columns, seed=seed)
    pictures = _pictures(folder, tokens_BT.numpy())
    return sheet([list(pictures[row * columns : (row + 1) * columns]) for row in range(rows)])


def completion_sheet(folder: ModelFolder, tokens_NT: np.ndarray, *, draws: int = 5, seed: int = 0) -> np.ndarray:
    """A row for each image: the original, its upper half alone, and completions of that half."""
    side = folder.model.config.resolution
    given = side * (side // 2)
    count = len(tokens_NT)
    prefix_BT = torch.from_numpy(tokens_NT[:, :given].astype(np.int64)).repeat_interleave(draws, 0)
    completions = _pictures(folder, complete(folder.model, prefix_BT, seed=seed).numpy())
    originals = _pictures(folder, tokens_NT)
    halves = originals.copy()
    halves[:, side // 2 :] = 200  # grey where the model is to draw
    return sheet([[originals[i], halves[i], *completions[i * draws : (i + 1) * draws]] for i in range(count)])


def draw_sheet(folder: ModelFolder, tokens_NT: np.ndarray | None, seed: int) -> np.ndarray:
    """The sheet of completions of some images, or of samples without any: what one task draws."""
    if tokens_NT is None:
        return sample_sheet(folder, seed=seed)
    return completion_sheet(folder, tokens_NT, seed=seed)


def _pictures(folder: ModelFolder, tokens_NT: np.ndarray) -> np.ndarray:
    """Token sequences [N, T] as pictures, uint8 [N, H, W, 3]."""
    side = folder.model.config.resolution
    return palettes.to_pixels(tokens_NT.reshape(-1, side, side), folder.palette_K3)
