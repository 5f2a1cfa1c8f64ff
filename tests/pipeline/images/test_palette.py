"""Palettes: an exact table, a fit as good as k-means on the raw pixels, and the file formats of others."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import IgptError
from pipeline.images import palette


def brute_force(colours_N3: np.ndarray, palette_K3: np.ndarray) -> np.ndarray:
    """The index of the nearest palette colour, the lowest among equals: every colour against every palette colour."""
    rgb_K3 = (palette_K3.astype(np.float64) + 1) * 127.5
    squared_N3K = (colours_N3.astype(np.float64)[:, :, None] - rgb_K3.T) ** 2
    return (squared_N3K[:, 0] + squared_N3K[:, 1] + squared_N3K[:, 2]).argmin(1)


def colour_numbers(colours_N3: np.ndarray) -> np.ndarray:
    wide = colours_N3.astype(np.int64)
    return (wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2]


def histogram_of(*parts: np.ndarray) -> palette.ColourHistogram:
    histogram = palette.ColourHistogram()
    for part in parts:
        histogram.add(part)
    return histogram


def mean_squared_error(pixels: np.ndarray, rgb_K3: np.ndarray) -> float:
    flat = pixels.reshape(-1, 3).astype(np.float64)
    squared = ((flat[:, None] - rgb_K3) ** 2).sum(-1)
    return float(squared.min(1).mean())


def in_palette_range(levels: np.ndarray) -> np.ndarray:
    return (levels / 127.5 - 1).astype(np.float32)


CORNERS = np.array([[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)], np.float32)
RANDOM = np.random.default_rng(0)
PALETTES = {
    "corners": CORNERS,
    "two": in_palette_range(np.array([[30, 60, 200], [220, 180, 40]])),
    # Every colour with r = g is as far from the one as from the other.
    "ties": np.array([[-1, 1, 0], [1, -1, 0]], np.float32),
    "all equal": np.zeros((3, 3), np.float32),
    "greys": in_palette_range(np.repeat(np.arange(0, 256, 5)[:, None], 3, 1)),
    "duplicates": np.tile(in_palette_range(RANDOM.uniform(0, 255, (20, 3))), (3, 1)),
    "crowded": in_palette_range(RANDOM.normal(128, 12, (60, 3))),
    "512": in_palette_range(RANDOM.uniform(0, 255, (512, 3))),
}


@pytest.mark.parametrize("name", PALETTES)
def test_the_table_equals_brute_force(name: str) -> None:
    palette_K3 = PALETTES[name]
    table = palette.compute_lookup_table(palette_K3)
    assert table.shape == (1 << 24,)
    assert table.dtype == np.uint16
    near_colours = np.rint(palette.to_rgb(palette_K3))[:, None] + RANDOM.integers(-20, 21, (len(palette_K3), 20, 3))
    diagonal = np.repeat(np.arange(256)[:, None], 3, 1)
    random = RANDOM.integers(0, 256, (10_000, 3))
    # The planes on both sides of the cubes' faces.
    faces = RANDOM.choice([0, 15, 16, 127, 128, 239, 240, 255], (2_000, 3))
    colours = np.concatenate([near_colours.clip(0, 255).reshape(-1, 3).astype(int), diagonal, random, faces])
    assert np.array_equal(table[colour_numbers(colours)], brute_force(colours, palette_K3))


def test_the_whole_table_equals_brute_force() -> None:
    palette_K3 = np.concatenate([CORNERS[1:6], PALETTES["two"], CORNERS[1:2]])
    table = palette.compute_lookup_table(palette_K3).reshape(256, -1)
    rgb_K3 = palette.to_rgb(palette_K3)
    squared = (np.arange(256.0)[:, None, None] - rgb_K3.T) ** 2  # [256, 3, K]
    for red in range(256):
        distance = (squared[red, 0] + squared[:, None, 1]) + squared[None, :, 2]
        assert np.array_equal(table[red], distance.argmin(-1).reshape(-1))


def test_the_lowest_of_equal_colours_is_taken() -> None:
    table = palette.compute_lookup_table(PALETTES["ties"])
    greys = np.arange(256)
    assert not table[(greys << 16) | (greys << 8) | 77].any()


@pytest.mark.parametrize("shape", [(64, 64), (5, 32, 32), (1, 2)])
def test_quantize_takes_the_nearest_colour_of_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    tokens = palette.quantize(pixels, palette.compute_lookup_table(PALETTES["corners"]))
    assert tokens.dtype == np.uint16
    assert tokens.shape == shape
    # The nearest corner has each channel on the pixel's side of the middle; 4, 2 and 1 are the corners' strides.
    assert np.array_equal(tokens, (pixels >= 128) @ np.array([4, 2, 1]))


def test_palette_colours_survive_quantization() -> None:
    palette_K3 = in_palette_range(
        RANDOM.permutation(np.stack(np.meshgrid(*[[0, 50, 130, 255]] * 3), -1).reshape(-1, 3))
    )
    tokens = np.arange(64).reshape(8, 8)
    table = palette.compute_lookup_table(palette_K3)
    assert np.array_equal(palette.quantize(palette.to_pixels(tokens, palette_K3), table), tokens)


def test_flips_commute_with_quantization(photos: np.ndarray) -> None:
    table = palette.compute_lookup_table(PALETTES["512"])
    tokens = palette.quantize(photos, table)
    assert np.array_equal(palette.quantize(photos[:, :, ::-1], table), tokens[:, :, ::-1])
    assert np.array_equal(palette.quantize(photos[:, ::-1], table), tokens[:, ::-1])
    assert np.array_equal(palette.quantize(np.roll(photos, 5, 2), table), np.roll(tokens, 5, 2))


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 120), max_size=5))
def test_merged_histograms_equal_the_histogram_of_all(photos: np.ndarray, cuts: list[int]) -> None:
    merged = palette.ColourHistogram()
    for part in np.split(photos, sorted(cuts)):
        merged.merge(histogram_of(part))
    whole = histogram_of(photos)
    assert np.array_equal(merged.counts, whole.counts)
    assert np.array_equal(merged.sums, whole.sums)
    assert whole.counts.sum() == photos.size // 3
    assert np.array_equal(whole.sums.sum(0), photos.reshape(-1, 3).sum(0, dtype=np.int64))


def test_the_fit_is_as_good_as_kmeans_on_the_pixels(photos: np.ndarray) -> None:
    from sklearn.cluster import KMeans

    pixels = photos[::4].reshape(-1, 3)
    reference = KMeans(16, n_init=1, random_state=0).fit(pixels.astype(np.float64)).cluster_centers_
    fitted = palette.to_rgb(palette.fit(histogram_of(pixels), 16, seed=0))
    assert mean_squared_error(pixels, fitted) <= 1.03 * mean_squared_error(pixels, reference)


def test_the_fit_depends_on_the_pixels_and_the_seed_alone(photos: np.ndarray) -> None:
    first = palette.fit(histogram_of(photos), 32, seed=3)
    assert first.shape == (32, 3)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    assert np.array_equal(palette.fit(histogram_of(photos[70:], photos[:70]), 32, seed=3), first)
    assert not np.array_equal(palette.fit(histogram_of(photos), 32, seed=4), first)


def test_the_fit_finds_the_colours_of_an_image_that_has_no_others() -> None:
    colours = np.array([[0, 0, 0], [200, 30, 40], [10, 220, 90], [255, 255, 255]], np.uint8)
    pixels = colours[np.random.default_rng(0).integers(0, 4, 1000)]
    fitted = palette.to_rgb(palette.fit(histogram_of(pixels), 4, seed=0))
    assert np.abs(fitted - colours[np.argsort(colours.sum(1, dtype=int))]).max() < 1 / 64


@pytest.mark.parametrize("colours", [2, 16])
def test_images_of_one_colour_are_refused_without_advice_that_is_refused_itself(colours: int) -> None:
    with pytest.raises(IgptError, match="the images have a single colour") as raised:
        palette.fit(histogram_of(np.full((1000, 3), 200, np.uint8)), colours, seed=0)
    assert "set colours" not in str(raised.value)


def test_more_colours_than_the_images_have_are_refused() -> None:
    pixels = np.array([[0, 0, 0], [200, 30, 40], [10, 220, 90]], np.uint8)
    with pytest.raises(IgptError, match=r"3 distinct colours.*set colours to at most 3"):
        palette.fit(histogram_of(pixels), 4, seed=0)


@pytest.mark.parametrize("name", PALETTES)
def test_a_palette_survives_its_file(name: str) -> None:
    data = palette.to_bytes(PALETTES[name])
    loaded = palette.from_bytes(data, "palette.npy")
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, PALETTES[name])
    assert palette.to_bytes(loaded) == data
    assert palette.sha256(loaded) == palette.sha256(PALETTES[name])


def test_different_palettes_have_different_names() -> None:
    assert len({palette.sha256(palette_K3) for palette_K3 in PALETTES.values()}) == len(PALETTES)


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(CORNERS.tolist()).encode(),
        json.dumps({"clusters": CORNERS.tolist(), "size": {"height": 32}}).encode(),
        npy(CORNERS.astype(np.float64)),
        npy(np.asfortranarray(CORNERS)),
        npy(CORNERS.astype(">f4")),
        npy(CORNERS.astype(np.int8)),
    ],
    ids=["list", "preprocessor config", "float64", "Fortran order", "big-endian", "integers"],
)
def test_palettes_of_other_projects_load(data: bytes) -> None:
    assert np.array_equal(palette.from_bytes(data, "clusters"), CORNERS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a palette",
        b"\xff\xfe\x00",
        b"null",
        b"7",
        b'{"colours": []}',
        b'{"clusters": 5}',
        b"[[0, 0, 0], [1, 1]]",
        b"[[0, 0, 0], [NaN, 1, 1]]",
        b'[["a", "b", "c"], ["d", "e", "f"]]',
        json.dumps((CORNERS * 127.5 + 127.5).tolist()).encode(),
        npy(CORNERS)[:-1],
        npy(CORNERS)[:20],
        npy(CORNERS[:1]),
        npy(CORNERS.T),
        npy(np.zeros((65537, 3), np.float32)),
        npy(np.full((4, 3), np.inf)),
        npy(np.full((4, 3), "a")),
        npy(np.zeros((4, 3), complex)),
        npy(np.full((4, 3), None), allow_pickle=True),
    ],
)
def test_what_is_no_palette_is_refused_with_its_origin(data: bytes) -> None:
    with pytest.raises(IgptError, match=r"^some/palette: "):
        palette.from_bytes(data, "some/palette")
