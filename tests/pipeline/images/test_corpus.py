"""Files of every format and mode give what twenty lines of Pillow and NumPy give, or docs/data.md explains them."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images import formats
from pipeline.images.decode import Pictures, Recipe, decode
from pipeline.images.rejection import Reason, Rejection
from tests.pipeline.images.corpus import corpus

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
SIDE = 16
# Names of the files that differ, and the beginning of the row of docs/data.md that explains them.
EXPLAINED = {
    r"(EPS|PDF|PALM|IM|MSP|SPIDER) .*": "not read",
    r"PNG .*of (2|4|16) bits with a transparent (tone|colour)": "PNG of 2, 4 or 16 bits with a transparent colour",
    r"ICNS P": "ICNS of a PNG with a palette",
    r"TIFF of .*, white is zero": "TIFF of 16 bits or floats whose zero is white",
    r"TIFF of 12 bits": "TIFF of 12 bits",
    r"TIFF of (signed|all|32) .*": "TIFF of signed 16-bit or of 32-bit integers",
    r"TIFF of floats .*": "TIFF or PFM of floats",
}
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Image.Transpose


def reference(data: bytes) -> np.ndarray:
    """The centre square of an image over white, averaged down; uint8 [SIDE, SIDE, 3]."""
    image = Image.open(io.BytesIO(data))
    image.load()
    turn = TURNS.get(image.getexif().get(0x112, 1))
    if image.mode[0] in "IF":
        values = np.asarray(image).astype(float)
        white = 1 if image.mode == "F" and values.max() <= 1 else 65535
        image = Image.fromarray(np.floor(values / white * 255 + 0.5).clip(0, 255).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    image = image if turn is None else image.transpose(Image.Transpose(turn))
    left, top = (image.width - min(image.size)) / 2, (image.height - min(image.size)) / 2
    box = (left, top, image.width - left, image.height - top)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box))


def outcome_of(data: bytes) -> Pictures | Rejection:
    return decode(data, Recipe(resolution=SIDE, smallest_side=1, max_pixels=2**20))


def as_expected(name: str, data: bytes, docs: str) -> bool:
    """Whether a file is as plain Pillow shows it, or differs and the docs explain it."""
    outcome = outcome_of(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = reference(data)
        except (OSError, ValueError, AssertionError):  # plain Pillow cannot show it
            expected = np.empty(0)
    same = isinstance(outcome, Pictures) and np.array_equal(outcome.pixels[0], expected)
    explanation = next((row for names, row in EXPLAINED.items() if re.fullmatch(names, name)), None)
    if explanation is None or same:
        return same and explanation is None
    refused = isinstance(outcome, Rejection) and outcome.reason in {Reason.UNSUPPORTED, Reason.NOT_AN_IMAGE}
    return f"| {explanation}" in docs and (refused or explanation != "not read")


def test_every_file_is_as_plain_pillow_shows_it_or_explained() -> None:
    docs = DOCS.read_text()
    assert len(corpus()) > 300
    assert [name for name, data in corpus().items() if not as_expected(name, data, docs)] == []


def test_the_corpus_has_every_format_that_is_read() -> None:
    assert {formats.format_of(data) for data in corpus().values()} == {
        None,
        *(known.name for known in formats.FORMATS),
    }
