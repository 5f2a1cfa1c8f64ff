"""CPU time of features and scores with the images of a pass bounded by its largest tensor, against unbounded passes.

    python -m benchmarks.passes [--rounds 5]

One thread. CPU time, because it counts the kernel's part, which is what the bound saves, and other load leaves it
alone. Larger is better: images per CPU second.
"""

import argparse
import resource
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch

from benchmarks.measure import Series, interleave, machine, ratio, save
from igpt_model.inference import passes
from igpt_model.inference.features import image_features
from igpt_model.inference.score import score
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT

SHAPES = {
    "5 M parameters at 32x32": (ModelConfig(layers=6, width=256, heads=4, resolution=32, colours=512), 32),
    "2.5 M parameters at 16x16": (ModelConfig(layers=12, width=128, heads=8, resolution=16, colours=512), 128),
    "0.2 M parameters at 8x8": (ModelConfig(layers=4, width=64, heads=4, resolution=8, colours=16), 1024),
}


def contestants(config: ModelConfig, images: int) -> dict[str, Callable[[], float]]:
    """Features of the middle layer and scores, each bounded and not."""
    bundle = ModelBundle(
        model=ImageGPT(config).eval(), palette_K3=np.zeros((config.colours, 3), np.float32), classes=()
    )
    tokens_BT = torch.randint(0, config.colours, (images, config.positions))
    work = {
        "features": lambda: image_features(bundle, tokens_BT, layers=[config.layers // 2]),
        "scores": lambda: score(bundle.model, tokens_BT),
    }

    def rate(run: Callable[[], object], limit: int) -> float:
        with mock.patch.object(passes, "_TENSOR_BYTES", limit):
            before = resource.getrusage(resource.RUSAGE_SELF)
            run()
            after = resource.getrusage(resource.RUSAGE_SELF)
        return images / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    limits = {"bounded": passes._TENSOR_BYTES, "unbounded": 1 << 60}
    return {
        f"{name}, {bound}": (lambda run=run, limit=limit: rate(run, limit))
        for name, run in work.items()
        for bound, limit in limits.items()
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    described = machine("torch")
    results: dict[str, object] = {}
    for name, (config, images) in SHAPES.items():
        print(name, flush=True)
        runs = contestants(config, images)
        for run in runs.values():
            run()  # memory that is kept is there
        rates: dict[str, Series] = interleave(runs, arguments.rounds)
        results[name] = {
            "images_per_cpu_second": {run: series.summary() for run, series in rates.items()},
            "bounded / unbounded": {
                work: ratio(rates[f"{work}, bounded"], rates[f"{work}, unbounded"]) for work in ("features", "scores")
            },
        }
    save("passes", {"machine": described, "shapes": results})


if __name__ == "__main__":
    main()
