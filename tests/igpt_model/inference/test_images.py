"""Images of every kind become the same pictures, and what is no image is refused with the reason."""

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from igpt_model.inference.images import as_pandas, index_of, to_pictures
from pipeline.errors import IgptError
from pipeline.images.decode import centre_square


def png_of(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


CUT = png_of(load_sample_images().images[0][:64, :64])[:2000]


NOISE = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
GREY = NOISE[..., 0]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"image 0 has shape \(8, 8, 3\), float32: give uint8"),
        (np.zeros((8, 8, 3)), r"image 0 has shape \(8, 8, 3\), float64: give .*times 255"),
        (torch.zeros(2, 3, 8, 8), r"image 0 has shape \(3, 8, 8\), float32: give .*times 255"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16), r"image 0 has shape \(3, 8, 8\), float32"),
        (torch.zeros(1, 3, 8, 4, dtype=torch.uint8), r"channels may be first or last: give an array"),
        (
            np.zeros((5, 8, 8), np.uint8),
            r"images have shape \(5, 8, 8\), uint8: several grey images are \[N, H, W, 1\]",
        ),
        (np.zeros((3, 8, 8), np.uint8), r"one image with its channels first is given in a list"),
        (np.zeros((8, 3), np.uint8), r"image 0 has shape \(8, 3\), which may be one row of pixels"),
        (list(np.zeros((8, 9, 3), np.uint8)), r"image 0 has shape \(9, 3\), which may be one row of pixels"),
        (np.zeros((1, 8, 8, 2), np.uint8), r"image 0 has shape \(8, 8, 2\)"),
        (np.zeros((1, 8, 8, 3), bool), r"image 0 has shape \(8, 8, 3\), bool"),
        (np.zeros(64, np.uint8), r"images have shape \(64,\), uint8"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"images have shape \(1, 2, 8, 8, 3\)"),
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
        (pd.DataFrame([[b"", b""]], columns=["image", "image"]), "the table has 2 columns 'image': it must have one"),
        (pd.DataFrame(np.zeros((1, 784))), r"the table has the columns \['0', .*'9', '...'\]: give"),
        (pd.DataFrame({"image": [png_of(NOISE), None]}), r"image 1 is missing \(null\)"),
        (pd.Series([np.nan]), r"image 0 is missing \(null\)"),
        (pa.table({"picture": [b""]}), r"the table has the columns \['picture'\]"),
        (pa.table({"image": [b"a", None]}), "image 0: not_an_image"),
        (np.array(None), "images are NoneType"),
        ({"image": np.array(None)}, "images are NoneType"),
        ([{"name": "a.png"}], r"image 0 has the columns \['name'\]: give"),
        ([{"bytes": None, "path": "a.png"}], "image 0 has a path and no bytes, and paths are not opened"),
        ([{"image": None}], r"image 0 is missing \(null\)"),
        (["photo.jpg"], r"image 0 is a text that is not base64 \(paths and URLs are not opened\)"),
        (["data:text/plain,words"], "image 0 is a data URL that is not base64"),
        ([["AAAA"]], r"image 0 has shape \(1,\)"),
        ((image for image in [NOISE]), "images are generator: give"),
        (None, "images are NoneType"),
        (7, "images are int"),
    ],
)
def test_invalid_images_are_refused_with_the_reason(bad: object, expected: str) -> None:
    with pytest.raises(IgptError, match=expected) as raised:
        to_pictures(bad, 8)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


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
    for mode in ("YCbCr", "LAB", "HSV", "CMYK", "RGBA", "RGBX", "RGBa"):
        (shown,) = to_pictures([opened[0].convert("RGB").convert(mode)], 8)
        assert np.abs(shown.astype(int) - to_pictures(files[:1], 8)[0]).max() <= 3, mode


def forms_of_colour() -> dict[str, Any]:
    """Forms in which two images of one size are given."""
    pair = np.stack([NOISE, NOISE[::-1]])
    files = [png_of(image) for image in pair]
    texts = [base64.b64encode(data).decode() for data in files]
    stored = [{"bytes": data, "path": None} for data in files]
    read_only = np.frombuffer(pair.tobytes(), np.uint8).reshape(pair.shape)
    nested = pa.array([image.tolist() for image in pair], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    first = torch.from_numpy(pair.copy()).permute(0, 3, 1, 2)
    return {
        "array": pair,
        "read-only": read_only,
        "strided": np.stack([pair] * 2)[::-1, :, ::-1, ::-1, ::-1][0][:, ::-1, ::-1, ::-1],
        "column by column": np.asfortranarray(pair),
        "of another byte order": pair.astype(">i4"),
        "RGBA": np.concatenate([pair, np.full_like(pair[..., :1], 255)], 3),
        "channels first": np.moveaxis(pair, 3, 1),
        "objects": np.array([*pair, None], object)[:2],
        "tuple": tuple(pair),
        "nested": pair.tolist(),
        "tensor": torch.from_numpy(pair.copy()),
        "tensor, channels first": first,
        "tensors": list(first),
        "Pillow": [Image.fromarray(image) for image in pair],
        "bytearrays": [bytearray(data) for data in files],
        "views": [memoryview(data) for data in files],
        "texts": texts,
        "texts in lines": [base64.encodebytes(data).decode() for data in files],
        "texts for URLs": [base64.urlsafe_b64encode(data).decode().rstrip("=") for data in files],
        "data URLs": [f"data:image/png;base64,{text}" for text in texts],
        "quoted data URLs": [f"DATA:image/png;name=a;Base64,{text.replace('+', '%2B')}" for text in texts],
        "series": pd.Series(files, index=[7, 3]),
        "series of arrays": pd.Series(list(pair)),
        "series of Pillow's": pd.Series([Image.fromarray(image) for image in pair]),
        "dicts": stored,
        "dicts from HTTP": [{"bytes": np.array(text), "path": np.array(None)} for text in texts],
        "dicts with a column": [{"image": text} for text in texts],
        "columns of bytes": {"bytes": np.array(texts), "path": np.array([None, None])},
        "table": pd.DataFrame({"image": files, "label": [1, 2]}),
        "table of dicts": pd.DataFrame({"image": stored}),
        "arrow": pa.table({"image": files}),
        "arrow batch": pa.record_batch({"image": files}),
        "arrow dicts": pa.table({"image": stored}),
        "arrow lists": pa.table({"image": nested}),
        "arrow column": pa.chunked_array([files]),
        "arrow array": pa.array(files),
    }


@pytest.mark.parametrize("name", forms_of_colour())
def test_two_images_in_every_form_are_the_same_pictures(name: str) -> None:
    expected = [centre_square(Image.fromarray(image), 8) for image in (NOISE, NOISE[::-1])]
    assert np.array_equal(to_pictures(forms_of_colour()[name], 8), expected)


@pytest.mark.parametrize(
    ("one", "mode"),
    [
        (NOISE, "RGB"),
        (NOISE.tolist(), "RGB"),
        (torch.from_numpy(NOISE), "RGB"),
        ([torch.from_numpy(NOISE).permute(2, 0, 1)], "RGB"),
        (Image.fromarray(NOISE), "RGB"),
        (png_of(NOISE), "RGB"),
        (memoryview(png_of(NOISE)), "RGB"),
        (base64.encodebytes(png_of(NOISE)).decode(), "RGB"),
        (np.array(base64.b64encode(png_of(NOISE)).decode()), "RGB"),
        ({"bytes": png_of(NOISE), "path": "a.png"}, "RGB"),
        ({"image": np.array(base64.b64encode(png_of(NOISE)).decode())}, "RGB"),
        ({"image": NOISE}, "RGB"),
        (GREY, "L"),
        (GREY.tolist(), "L"),
        ([GREY], "L"),
        (GREY[..., None], "L"),
        (GREY[None, ..., None], "L"),
        (GREY[None, None], "L"),
        (torch.from_numpy(GREY.copy()), "L"),
        ([Image.fromarray(GREY)], "L"),
    ],
)
def test_one_image_needs_no_list_and_grey_ones_no_channels(one: Any, mode: str) -> None:
    shown = NOISE if mode == "RGB" else GREY
    assert np.array_equal(to_pictures(one, 8), centre_square(Image.fromarray(shown).convert("RGB"), 8)[None])


def test_transparent_pixels_of_an_array_are_blended_with_white_as_those_of_a_file() -> None:
    rgba = np.dstack([NOISE, GREY])
    assert np.array_equal(to_pictures(rgba, 8), to_pictures(png_of(rgba), 8))
    assert not np.array_equal(to_pictures(rgba, 8), to_pictures(NOISE, 8))


def test_grey_images_of_a_batch_and_of_a_list_are_those_of_their_files() -> None:
    batch = np.stack([GREY, GREY[::-1]])
    files = [png_of(image) for image in batch]
    for same in (batch[..., None], list(batch), [Image.fromarray(image) for image in batch], batch[:, None]):
        assert np.array_equal(to_pictures(same, 8), to_pictures(files, 8))


def test_the_index_of_a_table_is_known() -> None:
    files = [png_of(NOISE)] * 2
    table = pd.DataFrame({"image": files}, index=["b", "a"])
    for tabular in (table, table["image"], as_pandas(pa.Table.from_pandas(table))):
        assert list(index_of(tabular)) == ["b", "a"]
    assert index_of(files) is None and index_of(np.zeros(3)) is None
