"""Fixtures that need no service: real photographs, and an image folder made of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

pytest_plugins = ["tests.rigs.fixtures"]


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """Square cuttings of two real photographs, uint8 [120, 64, 64, 3]: 60 of a temple, then 60 of a flower."""
    tiles = []
    for photo_HWC in load_sample_images().images:
        rows, columns = photo_HWC.shape[0] // 64, photo_HWC.shape[1] // 64
        grid = photo_HWC[: rows * 64, : columns * 64].reshape(rows, 64, columns, 64, 3)
        tiles.append(grid.transpose(0, 2, 1, 3, 4).reshape(-1, 64, 64, 3))
    photos_N64643 = np.concatenate(tiles)
    photos_N64643.setflags(write=False)
    return photos_N64643


@pytest.fixture(scope="session")
def image_folder(photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the classes digit (20 grey PNG), flower (40 JPEG) and temple (40 PNG); copy it to change it."""
    root = tmp_path_factory.mktemp("images")
    for name in ("digit", "flower", "temple"):
        (root / name).mkdir()
    for number, digit_88 in enumerate(load_digits().images[:20]):
        grey = np.kron(digit_88 * 255 / 16, np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(grey).save(root / "digit" / f"{number:02d}.png")
    for number in range(40):
        Image.fromarray(photos[number]).save(root / "temple" / f"{number:02d}.png")
        Image.fromarray(photos[60 + number]).save(root / "flower" / f"{number:02d}.jpg", quality=90)
    return root
