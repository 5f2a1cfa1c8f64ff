"""Images of every kind become the same pictures, and what is no image is refused with the reason."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from igpt_model.inference.images import to_pictures
from pipeline.errors import IgptError
from pipeline.images.decode import centre_square


def png_of(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


CUT = png_of(load_sample_images().images[0][:64, :64])[:2000]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"image 0 has shape \(8, 8, 3\), float32: give uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"images have shape \(8, 8, 3\), uint8: give uint8"),
        (np.zeros((1, 8, 8, 4), np.uint8), r"image 0 has shape \(8, 8, 4\)"),
        (np.zeros((1, 0, 8, 3), np.uint8), r"image 0 has shape \(0, 8, 3\)"),
        (np.full((1, 8, 8, 3), 256), "image 0 has values from 256 to 256: they must be 0 to 255"),
        ([[[[1, 2, 3]], [[1, 2]]]], "image 0 is not a rectangle of pixels"),
        ([b"no image"], "image 0: not_an_image"),
        ([CUT], "image 0: truncated .*; give a whole image file"),
        ([Image.open(io.BytesIO(CUT))], "image 0: truncated .*; give a whole image file"),
        ([b"%!PS-Adobe-3.0 EPSF-3.0"], r"image 0: unsupported \(PostScript is not read\); convert it to JPEG or PNG"),
        (["no image!"], "image 0 is a text that is not base64"),
        ([], "there are no images"),
        (pd.DataFrame({"picture": [b""]}), r"the table has the columns \['picture'\]"),
        (None, "images are NoneType"),
        (7, "images are int"),
    ],
)
def test_invalid_images_are_refused_with_the_reason(bad: object, expected: str) -> None:
    with pytest.raises(IgptError, match=expected) as raised:
        to_pictures(bad, 8)
    assert "\n" not in str(raised.value)


def test_images_of_any_size_are_cut_to_their_centre_and_averaged_down(photos: np.ndarray) -> None:
    images = [photos[0], photos[1][:40], photos[2][:, 10:]]
    expected = np.stack([centre_square(Image.fromarray(image), 8) for image in images])
    assert expected.shape == (3, 8, 8, 3)
    assert np.array_equal(to_pictures(images, 8), expected)
    assert np.array_equal(to_pictures([image.tolist() for image in images], 8), expected), "as JSON has them"


def test_images_of_pillows_give_what_their_files_give(photos: np.ndarray) -> None:
    orientation = Image.Exif()
    orientation[0x112] = 6
    files = [png_of(photos[0]), png_of(photos[1], exif=orientation)]
    opened = [Image.open(io.BytesIO(data)) for data in files]  # whose pixels are not read yet
    assert np.array_equal(to_pictures(opened, 8), to_pictures(files, 8))
    assert np.array_equal(to_pictures(opened[1], 8), to_pictures(files[1], 8))
    for mode in ("YCbCr", "LAB", "CMYK", "RGBA"):
        (shown,) = to_pictures([opened[0].convert("RGB").convert(mode)], 8)
        assert np.abs(shown.astype(int) - to_pictures(files[:1], 8)[0]).max() <= 3, mode
