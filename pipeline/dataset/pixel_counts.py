"""How often each colour is at each position of a split's samples: the baselines of a training, without its shards.

A file is named by its checksum and holds an array [T, K]: T = resolution^2 positions in raster order, K colours.
"""

import io

import numpy as np

from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.store import objects

# Larger arrays (256x256 with 512 colours has twice as many counts) would cost a task more memory than its images.
_MAX_COUNTS = 1 << 24
_TOKENS_AT_ONCE = 1 << 19


def are_kept(resolution: int, colours: int) -> bool:
    """Whether the pixels of a dataset are counted."""
    return resolution**2 * colours <= _MAX_COUNTS


def count(tokens_NHW: np.ndarray, colours: int) -> np.ndarray:
    """Count the tokens of images, uint16 [N, H, W], by position and colour; int64 [T, K]."""
    positions = tokens_NHW.shape[1] * tokens_NHW.shape[2]
    tokens_NT = tokens_NHW.reshape(len(tokens_NHW), positions)
    cells_T = np.arange(positions) * colours
    counts = np.zeros(positions * colours, np.int64)
    images_at_once = max(1, _TOKENS_AT_ONCE // positions)
    for start in range(0, len(tokens_NT), images_at_once):
        cells = tokens_NT[start : start + images_at_once] + cells_T
        counts += np.bincount(cells.reshape(-1), minlength=len(counts))
    return counts.reshape(positions, colours)


def path_of(name: str) -> str:
    """Path of a file of counts, relative to the dataset."""
    return f"counts/{name}.npy"


def to_bytes(counts_TK: np.ndarray) -> bytes:
    """The .npy file of counts: uint32 where they fit, else uint64."""
    kind = np.uint32 if counts_TK.max(initial=0) < 2**32 else np.uint64
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(counts_TK, np.dtype(kind).newbyteorder("<")), allow_pickle=False)
    return buffer.getvalue()


def write(dataset: str, counts_TK: np.ndarray) -> str:
    """Store counts; returns the name of the file, which is its SHA-256."""
    data = to_bytes(counts_TK)
    name = sha256(data)
    url = objects.join(dataset, path_of(name))
    if objects.size(url) != len(data):
        objects.write_bytes(url, data)
    return name


def read(dataset: str, name: str) -> np.ndarray:
    """Read counts, int64 [T, K]. Raises IgptError when the file is missing or damaged."""
    url = objects.join(dataset, path_of(name))
    try:
        data = objects.read_bytes(url)
    except FileNotFoundError:
        raise IgptError(f"{url}: the pixel counts are gone; restore them") from None
    if sha256(data) != name:
        raise IgptError(f"{url}: the pixel counts are damaged (another checksum); restore them")
    return np.load(io.BytesIO(data), allow_pickle=False).astype(np.int64)
