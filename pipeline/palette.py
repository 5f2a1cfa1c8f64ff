"""The palette of a dataset: colours by k-means from a colour histogram, an exact lookup table, load and save. Pure."""

import hashlib
import io
import json

import numpy as np

from pipeline.errors import IgptError

# The histogram has 2^18 cells: the upper six bits of each channel. A cell keeps the mean of its colours, so that the
# fit sees the true colours of sparse images and an error of at most two grey levels in dense ones.
_BITS = 6
_CELLS = 1 << (3 * _BITS)
_FIT_ITERATIONS = 60


class ColourHistogram:
    """Counts and colour sums by cell; mergeable, 8 MiB whatever the number of pixels."""

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

    Raises IgptError when the images have fewer distinct colours than the palette is to have.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 (scikit-learn takes a second to import; only the fit needs it)
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    filled = np.flatnonzero(histogram.counts)
    if len(filled) < colours:
        raise IgptError(
            f"the images have about {len(filled)} distinct colours, fewer than the palette's {colours}: "
            f"set colours to at most {len(filled)}"
        )
    means = histogram.sums[filled] / histogram.counts[filled, None]
    kmeans = KMeans(colours, n_init=1, max_iter=_FIT_ITERATIONS, random_state=seed, tol=1e-6)
    with threadpool_limits(1):  # the order of a threaded sum varies, and with it the last bits of a centre
        kmeans.fit(means, sample_weight=histogram.counts[filled].astype(np.float64))
    # Rounded to 1/64 of a grey level, so that the rounding of sums on another processor does not show.
    centres = np.round(kmeans.cluster_centers_ * 64) / 64
    order = np.lexsort((centres[:, 2], centres[:, 1], centres[:, 0], centres.sum(1)))
    return (centres[order] / 127.5 - 1).astype(np.float32)


def to_rgb(palette_K3: np.ndarray) -> np.ndarray:
    """Palette colours as float64 [K, 3] in 0..255."""
    return (palette_K3.astype(np.float64) + 1) * 127.5


def to_pixels(tokens: np.ndarray, palette_K3: np.ndarray) -> np.ndarray:
    """Turn token images [..., H, W] into uint8 pictures [..., H, W, 3]."""
    return np.clip(np.rint(to_rgb(palette_K3)), 0, 255).astype(np.uint8)[tokens]


def lookup_table(palette_K3: np.ndarray) -> np.ndarray:
    """The nearest palette colour of every 24-bit colour: uint16 [2^24], indexed by r << 16 | g << 8 | b.

    Exact: equal to comparing every colour with every palette colour, squared distances in float64 and the lowest index
    among equals. The colour cube is cut into 4096 cubes of side 16; for each, only those palette colours are compared
    that can be nearest to some point of it: whose least distance to the cube does not exceed the smallest of all
    greatest distances.
    """
    rgb_K3 = to_rgb(palette_K3)
    side = 16
    steps = np.arange(0, 256, side)
    # Per channel and position of the cube: squared distance of each palette colour to the nearest and farthest value.
    low, high = steps[:, None, None], steps[:, None, None] + side - 1
    values = rgb_K3.T[None]  # [1, 3, K]
    nearest = np.maximum(np.maximum(low - values, values - high), 0) ** 2  # [16, 3, K]
    farthest = np.maximum(np.abs(low - values), np.abs(high - values)) ** 2
    levels = np.arange(256, dtype=np.float64)
    squared = (levels[:, None, None] - values) ** 2  # [256, 3, K]
    table = np.empty((256, 256, 256), np.uint16)
    for r, r0 in enumerate(steps):
        for g, g0 in enumerate(steps):
            near_rg, far_rg = nearest[r, 0] + nearest[g, 1], farthest[r, 0] + farthest[g, 1]
            for b, b0 in enumerate(steps):
                bound = (far_rg + farthest[b, 2]).min()
                # The slack covers the rounding of the bound itself; one candidate too few would be wrong.
                candidates = np.flatnonzero(near_rg + nearest[b, 2] <= bound * (1 + 1e-9) + 1e-9)
                cube = (slice(r0, r0 + side), slice(g0, g0 + side), slice(b0, b0 + side))
                if len(candidates) == 1:
                    table[cube] = candidates[0]
                    continue
                red = squared[cube[0], 0][:, candidates]
                green = squared[cube[1], 1][:, candidates]
                blue = squared[cube[2], 2][:, candidates]
                distance = (red[:, None, None] + green[None, :, None]) + blue[None, None]
                table[cube] = candidates[distance.argmin(-1)]
    return table.reshape(-1)


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
    """Read a palette from a .npy file, or from JSON: a list of [r, g, b] or an object with such a list as `clusters`.

    Returns float32 [K, 3]; raises IgptError unless it is one with every value in [-1, 1].
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
    return hashlib.sha256(to_bytes(palette_K3)).hexdigest()
