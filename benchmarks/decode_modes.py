"""Exact and fast decoding, and quantization: their speed, and the difference of their results.

    python -m benchmarks.decode_modes IMAGES.tar [--rounds 5]

IMAGES.tar holds full-size JPEGs. One process runs the decoder alone, at 32x32 with a palette of 512 colours fitted to
the images.
"""

import argparse
import tarfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import interleave, machine, ratio, save
from pipeline.images import palette
from pipeline.images.decode import Pictures, Recipe, decode

EXACT = Recipe(resolution=32, smallest_side=32, max_pixels=80_000_000)
FAST = Recipe(resolution=32, smallest_side=32, max_pixels=80_000_000, fast=True)


def pictures(photographs: list[bytes], recipe: Recipe) -> np.ndarray:
    """The centre squares, uint8 [N, 32, 32, 3]."""
    decoded = [decode(data, recipe) for data in photographs]
    return np.concatenate([result.pixels for result in decoded if isinstance(result, Pictures)])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tarfile.open(arguments.images) as archive:
        photographs = [file.read() for m in archive if m.isreg() and (file := archive.extractfile(m)) is not None]
    exact_NHW3, fast_NHW3 = pictures(photographs, EXACT), pictures(photographs, FAST)
    histogram = palette.ColourHistogram()
    histogram.add(exact_NHW3)
    palette_K3 = palette.fit(histogram, 512, 0)
    began = time.perf_counter()
    table = palette.compute_lookup_table(palette_K3)
    table_seconds = time.perf_counter() - began

    def rate(recipe: Recipe) -> float:
        began = time.perf_counter()
        return len(pictures(photographs, recipe)) / (time.perf_counter() - began)

    def quantize() -> float:
        began = time.perf_counter()
        for image_HW3 in exact_NHW3:  # one by one, as a task does
            palette.quantize(image_HW3[None], table)
        return len(exact_NHW3) / (time.perf_counter() - began)

    rates = interleave(
        {"exact": lambda: rate(EXACT), "fast": lambda: rate(FAST), "quantize": quantize}, arguments.rounds
    )
    tokens, fast_tokens = (palette.quantize(images, table) for images in (exact_NHW3, fast_NHW3))
    error = np.abs(exact_NHW3.astype(int) - fast_NHW3)
    save(
        "decode_modes",
        {
            "machine": machine("pillow", "numpy"),
            "images": len(photographs),
            "images_per_second_a_core": {name: series.summary() for name, series in rates.items()},
            "fast / exact": ratio(rates["fast"], rates["exact"]),
            "difference": {
                "mean_grey_levels": round(float(error.mean()), 2),
                "99th_percentile_grey_levels": float(np.percentile(error, 99)),
                "share_of_tokens_changed": round(float((tokens != fast_tokens).mean()), 3),
                "mean_grey_levels_by_quantization_itself": round(
                    float(np.abs(exact_NHW3.astype(int) - palette.to_pixels(tokens, palette_K3)).mean()), 2
                ),
            },
            "lookup_table_seconds": round(table_seconds, 2),
        },
    )


if __name__ == "__main__":
    main()
