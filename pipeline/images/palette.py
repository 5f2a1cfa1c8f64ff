"""The palette of a dataset: k-means on a colour histogram, an exact lookup table, the file format. Pure."""

import io
import json
from dataclasses import dataclass

import numpy as np

from pipeline import hashing
from pipeline.errors import IgptError

# The histogram has 2^18 cells: the upper six bits of each channel. A cell keeps the mean of its colours, so the fit
# sees exact colours where images have few, and is off by at most two grey levels where they have many.
_BITS = 6
_CELLS = 1 << (3 * _BITS)
_FIT_ITERATIONS = 60
# The table is filled in cubes of this side; smaller cubes have fewer candidates, but more overhead.
_LEAF = 8
# Work is done in batches that fit memory and cache: candidates while cubes are divided, colours in the leaves.
_GROUP_CANDIDATES = 1 << 17
_LEAF_COLOURS = 1 << 15


class ColourHistogram:
    """Counts and colour sums by cell; mergeable, 8 MiB for any number of pixels."""

    def __init__(self) -> None:
        self.counts = np.zeros(_CELLS, np.int64)
        self.sums = np.zeros((_CELLS, 3), np.int64)

    def add(self, pixels: np.ndarray) -> None:
        """Count pixels, uint8 [..., 3]."""
        flat = pixels.reshape(-1, 3)
        high = (flat >> (8 - _BITS)).astype(np.int64)
        cells = (high[:, 0] << (2 * _BITS)) | (high[:, 1] << _BITS) | high[:, 2]
        self.counts += np.bincount(cells, minlength=_CELLS)
        for channel in range(3):
            sums = np.bincount(cells, weights=flat[:, channel], minlength=_CELLS)
            self.sums[:, channel] += sums.astype(np.int64)

    def merge(self, other: "ColourHistogram") -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts
        self.sums += other.sums


def fit(histogram: ColourHistogram, colours: int, seed: int) -> np.ndarray:
    """Fit `colours` palette colours by weighted k-means; return float32 [colours, 3] in [-1, 1], darkest first.

    Raises IgptError when the images have fewer distinct colours than requested.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 (importing scikit-learn takes a second; only the fit needs it)
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    filled = np.flatnonzero(histogram.counts)
    if len(filled) == 1:
        raise IgptError(
            "the images have a single colour, and a palette has at least two: give images that show something"
        )
    if len(filled) < colours:
        if len(filled) < 2:
            raise IgptError("the images have a single colour, and a palette has at least 2: there is nothing to learn")
        raise IgptError(
            f"the images have about {len(filled)} distinct colours, fewer than the palette's {colours}: "
            f"set colours to at most {len(filled)}"
        )
    means = histogram.sums[filled] / histogram.counts[filled, None]
    kmeans = KMeans(colours, n_init=1, max_iter=_FIT_ITERATIONS, random_state=seed, tol=1e-6)
    with threadpool_limits(1):  # threads sum in a varying order, which changes the last bits of a centre
        kmeans.fit(means, sample_weight=histogram.counts[filled].astype(np.float64))
    # Rounded to 1/64 of a grey level, to hide differences in rounding between processors.
    centres = np.round(kmeans.cluster_centers_ * 64) / 64
    order = np.lexsort((centres[:, 2], centres[:, 1], centres[:, 0], centres.sum(1)))
    return (centres[order] / 127.5 - 1).astype(np.float32)


def to_rgb(palette_K3: np.ndarray) -> np.ndarray:
    """Palette colours as float64 [K, 3] in 0..255."""
    return (palette_K3.astype(np.float64) + 1) * 127.5


def to_pixels(tokens: np.ndarray, palette_K3: np.ndarray) -> np.ndarray:
    """Turn token images [..., H, W] into uint8 pictures [..., H, W, 3]."""
    return np.clip(np.rint(to_rgb(palette_K3)), 0, 255).astype(np.uint8)[tokens]


def compute_lookup_table(palette_K3: np.ndarray) -> np.ndarray:
    """The nearest palette colour of every 24-bit colour: uint16 [2^24], indexed by r << 16 | g << 8 | b.

    Exact: equal to comparing every colour with every palette colour by squared distance in float64, with the lowest
    palette index among equals. The colour cube is halved in every direction until the cubes have the side `_LEAF`. Each
    cube keeps only those of its parent's palette colours that are nearest to some point of it (see `_halve`), and the
    colours of a leaf are compared with the remaining candidates: a handful of 512.
    """
    rgb_K3 = to_rgb(palette_K3)
    table = np.empty((256, 256, 256), np.uint16)
    # Depth first, so that memory does not grow with the number of leaves.
    waiting = [_Cubes(256, np.zeros((1, 3), np.int64), np.array([len(rgb_K3)]), np.arange(len(rgb_K3)))]
    while waiting:
        cubes = waiting.pop()
        if cubes.side == _LEAF:
            _fill_leaves(table, cubes, rgb_K3)
        else:
            waiting.extend(_halve(cubes, rgb_K3).groups())
    return table.reshape(-1)


@dataclass(frozen=True)
class _Cubes:
    """Cubes of equal side within the colour cube, with the palette colours that may be nearest in each."""

    side: int
    origins_C3: np.ndarray  # int64, the lowest corner of each cube
    counts_C: np.ndarray  # int64, the number of candidates of each cube
    candidates_P: np.ndarray  # int64, palette indices: those of the first cube, ascending, then of the second, ...

    def groups(self) -> list["_Cubes"]:
        """The same cubes in groups with a bounded number of candidates; a cube with more is a group of its own."""
        ends_C = np.cumsum(self.counts_C)
        group_C = (ends_C - 1) // _GROUP_CANDIDATES
        cuts = np.flatnonzero(np.diff(group_C)) + 1
        return [
            _Cubes(self.side, origins, counts, candidates)
            for origins, counts, candidates in zip(
                np.split(self.origins_C3, cuts),
                np.split(self.counts_C, cuts),
                np.split(self.candidates_P, ends_C[cuts - 1]),
                strict=True,
            )
        ]


def _halve(cubes: _Cubes, rgb_K3: np.ndarray) -> _Cubes:
    """Divide every cube into eight parts, and drop the candidates of each part that are nearest to none of its points.

    A palette colour a is dropped when b, the one nearest to the part's centre, is nearer than a in the whole part.
    |x - b|^2 - |x - a|^2 is linear in x, so its maximum over the part is at a corner, and is a sum of one term per
    channel.
    """
    side = cubes.side // 2
    corners_83 = np.stack(np.meshgrid(*[[0, side]] * 3, indexing="ij"), -1).reshape(8, 3)
    origins_C3 = (cubes.origins_C3[:, None] + corners_83).reshape(-1, 3)
    counts_C = np.repeat(cubes.counts_C, 8)
    starts_C = np.cumsum(counts_C) - counts_C
    parent_starts_C = np.repeat(np.cumsum(cubes.counts_C) - cubes.counts_C, 8)
    cube_P = np.repeat(np.arange(len(counts_C)), counts_C)
    candidates_P = cubes.candidates_P[np.arange(len(cube_P)) + (parent_starts_C - starts_C)[cube_P]]
    a_P3 = rgb_K3[candidates_P]
    distance_P = ((a_P3 - (origins_C3 + (side - 1) / 2)[cube_P]) ** 2).sum(1)
    least_C = np.minimum.reduceat(distance_P, starts_C)
    at_least = np.flatnonzero(distance_P == least_C[cube_P])
    nearest_C = np.empty(len(counts_C), np.int64)
    nearest_C[cube_P[at_least]] = candidates_P[at_least]  # any one of equals
    b_P3 = rgb_K3[nearest_C][cube_P]
    low_P3 = origins_C3[cube_P]
    towards_a_P3 = 2 * (a_P3 - b_P3)
    at_best_corner_P3 = np.where(towards_a_P3 > 0, low_P3 + side - 1, low_P3) * towards_a_P3
    advantage_P = at_best_corner_P3.sum(1) + ((b_P3 - a_P3) * (b_P3 + a_P3)).sum(1)
    # The tolerance covers rounding and keeps equals: a candidate too many costs time, one too few is an error.
    kept_P = advantage_P >= -1e-6
    return _Cubes(side, origins_C3, np.bincount(cube_P[kept_P], minlength=len(counts_C)), candidates_P[kept_P])


def _fill_leaves(table: np.ndarray, leaves: _Cubes, rgb_K3: np.ndarray) -> None:
    """Compare the colours of each leaf with its candidates, and write the nearest into the table, uint16 [256]^3."""
    side = leaves.side
    per_axis = 256 // side
    blocks = table.reshape(per_axis, side, per_axis, side, per_axis, side).transpose(0, 2, 4, 1, 3, 5)
    starts_C = np.cumsum(leaves.counts_C) - leaves.counts_C
    steps = np.arange(side)
    for count in np.unique(leaves.counts_C):
        same_count = np.flatnonzero(leaves.counts_C == count)
        for part in np.array_split(same_count, -(-len(same_count) * side**3 // _LEAF_COLOURS)):
            candidates_MN = leaves.candidates_P[starts_C[part, None] + np.arange(count)]
            positions = tuple((leaves.origins_C3[part] // side).T)
            if count == 1:
                blocks[positions] = candidates_MN[:, :, None, None]
                continue
            levels_MS3 = leaves.origins_C3[part, None] + steps[:, None]
            squared_NMS3 = (levels_MS3 - rgb_K3[candidates_MN.T][:, :, None]) ** 2
            # One candidate after the other, over a chunk that fits the processor's cache: faster than argmin.
            best = np.full((len(part), side, side, side), np.inf)
            nearest = np.zeros(best.shape, np.int64)
            for number, squared_MS3 in enumerate(squared_NMS3):
                red, green, blue = (squared_MS3[..., channel] for channel in range(3))
                distance = (red[:, :, None, None] + green[:, None, :, None]) + blue[:, None, None]
                nearer = distance < best
                np.copyto(best, distance, where=nearer)
                np.copyto(nearest, number, where=nearer)
            blocks[positions] = np.take_along_axis(candidates_MN[:, None, None], nearest, -1)


def quantize(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Turn pictures, uint8 [..., H, W, 3], into palette indices, uint16 [..., H, W], by a lookup table."""
    wide = pixels.astype(np.uint32)
    return table[(wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]]


def to_bytes(palette_K3: np.ndarray) -> bytes:
    """The .npy file of a palette."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(palette_K3, np.dtype("<f4")), allow_pickle=False)
    return buffer.getvalue()


def from_bytes(data: bytes, origin: str) -> np.ndarray:
    """Read a palette from a .npy file, or from JSON: a list of [r, g, b], or an object with such a list as `clusters`.

    Returns float32 [K, 3]. Raises IgptError unless the shape fits and every value lies in [-1, 1].
    """
    try:
        if data.startswith(b"\x93NUMPY"):
            colours = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32, casting="same_kind")
        else:
            parsed = json.loads(data)
            colours = np.array(parsed["clusters"] if isinstance(parsed, dict) else parsed, np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise IgptError(
            f"{origin}: not a palette ({error}); give an .npy of [K, 3] or a JSON list of clusters"
        ) from None
    if colours.ndim != 2 or colours.shape[1] != 3 or not 2 <= len(colours) <= 65536:
        raise IgptError(f"{origin}: a palette has the shape [2..65536, 3], this one {list(colours.shape)}")
    if not np.isfinite(colours).all() or np.abs(colours).max() > 1.0001:
        raise IgptError(f"{origin}: the values of a palette lie in [-1, 1]; divide by 127.5 and subtract 1")
    return np.ascontiguousarray(colours, np.float32)


def sha256(palette_K3: np.ndarray) -> str:
    """The identity of a palette: SHA-256, in hex, of its .npy file."""
    return hashing.sha256(to_bytes(palette_K3))
