"""Reads image files from disk or a store, at a model's resolution."""

from collections.abc import Sequence

import numpy as np

from igpt_model.inference.images import decode_picture
from pipeline.errors import IgptError
from pipeline.store import objects


def read_files(urls: Sequence[str]) -> list[bytes]:
    """The bytes of files. Raises IgptError naming the first that cannot be read."""
    contents = []
    for url in urls:
        try:
            contents.append(objects.read_bytes(objects.absolute(url)))
        except FileNotFoundError:
            raise IgptError(f"{url}: nothing is there; give the path or URL of an image file") from None
        except IsADirectoryError:
            raise IgptError(f"{url}: this is a folder; give image files") from None
    return contents


def to_pictures(contents: Sequence[bytes], names: Sequence[str], side: int) -> np.ndarray:
    """Image files as pictures, uint8 [N, side, side, 3]: the centre square, averaged down as a dataset build does.

    Raises IgptError naming the first file that is not an image.
    """
    return np.stack([decode_picture(data, name, side) for data, name in zip(contents, names, strict=True)])
