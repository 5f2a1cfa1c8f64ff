"""Reading image files, on disk or in a store, as pictures of a model's size."""

from collections.abc import Sequence

import numpy as np

from pipeline import storage
from pipeline.errors import IgptError
from pipeline.images import Recipe, Rejection, decode

_MAX_PIXELS = 80_000_000


def read_files(urls: Sequence[str]) -> list[bytes]:
    """The bytes of files. Raises IgptError naming the first that cannot be read."""
    contents = []
    for url in urls:
        try:
            contents.append(storage.read_bytes(storage.absolute(url)))
        except FileNotFoundError:
            raise IgptError(f"{url}: nothing is there; give the path or URL of an image file") from None
        except IsADirectoryError:
            raise IgptError(f"{url}: this is a folder; give image files") from None
    return contents


def to_pictures(contents: Sequence[bytes], names: Sequence[str], side: int) -> np.ndarray:
    """Image files as pictures, uint8 [N, side, side, 3]: the centre square, averaged down as a dataset build does.

    Raises IgptError naming the first file that is not an image.
    """
    recipe = Recipe(resolution=side, smallest_side=1, max_pixels=_MAX_PIXELS)
    pictures = []
    for data, name in zip(contents, names, strict=True):
        decoded = decode(data, recipe, name)
        if isinstance(decoded, Rejection):
            raise IgptError(
                f"{name}: {decoded.reason.value} ({decoded.detail}); give a JPEG, PNG, GIF, WebP or the like"
            )
        pictures.append(decoded.pixels[0])  # the one crop, of the centre
    return np.stack(pictures)
