"""Image files from disk: read in their order, and each mistake named by its file."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt_model.inference.image_files import read_files, to_pictures
from pipeline.errors import IgptError
from pipeline.images.decode import centre_square


def test_files_become_pictures_in_their_order(image_folder: Path) -> None:
    names = [str(image_folder / name) for name in ("temple/03.png", "digit/00.png", "temple/01.png")]
    pictures = to_pictures(read_files(names), names, 8)
    assert (pictures.shape, pictures.dtype) == ((3, 8, 8, 3), np.uint8)
    for name, picture in zip(names, pictures, strict=True):
        assert np.array_equal(picture, centre_square(Image.open(name).convert("RGB"), 8))


@pytest.mark.parametrize(
    ("name", "expected"), [("gone.png", r"gone\.png: nothing is there"), ("temple", "temple: this is a folder")]
)
def test_what_cannot_be_read_is_named(image_folder: Path, name: str, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        read_files([str(image_folder / "temple/03.png"), str(image_folder / name)])


def test_a_file_that_is_no_image_is_named() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(IgptError, match=r"^two: not_an_image"):
        to_pictures([buffer.getvalue(), b"words"], ["one", "two"], 8)
