"""Features of many image files: `igpt features` on Ray, a loop over `predict`, and Hugging Face's model in a loop.

    python -m benchmarks.batch [--layers 6 --width 256 --resolution 32 --images 512 --size 64 --rounds 5]

All three read the same PNG files, compute the features of the same layer with the same weights, and write them to disk.
The features agree. Ray's start and, of all three, the loading of the model are not timed. Ray runs a task with one
thread on each core; the loops use a thread on each core.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

from benchmarks.measure import interleave, machine, ratio, save
from benchmarks.registered import make_model, rate
from igpt_model.batch.config import BatchConfig
from igpt_model.batch.ray import run_batch
from igpt_model.batch.work import Work
from igpt_model.convert.hugging_face import to_hugging_face
from igpt_model.evaluating.ray import Executor
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry.serving import RegisteredImageGPT
from pipeline.pictures.raw_parts import raw_parts
from pipeline.progress import silent
from pipeline.readers import arrow

_AT_ONCE = 32  # images of a call in the loops


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What the contestants have in common."""

    model: ProbedModel
    raw: Path
    files: list[Path]
    layer: int
    work: Path
    """A folder for results."""

    def batch(self) -> float:
        """Images per second of a batch on the cluster; checks that each image is there once."""
        out, bundle = self.work / "batch", self.model.bundle
        shutil.rmtree(out, ignore_errors=True)
        config = BatchConfig(layers=(self.layer,), part_images=max(1, len(self.files) // 8))
        task, resolution = Work.of("features", self.model, config), bundle.model.config.resolution

        def run() -> None:
            with raw_parts(str(self.raw), str(out), resolution=resolution, on_cluster=True, progress=silent) as source:
                run_batch(task, bundle, source, str(out), config, Executor.cluster(), about={})

        return rate(run, len(self.files))

    def predict(self) -> float:
        """Images per second of a loop over `predict` of a registered model."""
        served = RegisteredImageGPT(self.model.bundle, self.model.best_layer)
        return rate(
            lambda: self._loop(
                lambda files: served.predict([file.read_bytes() for file in files], {"layer": self.layer}),
                "predict.npy",
            ),
            len(self.files),
        )

    def hugging_face(self) -> Callable[[], float]:
        """The same for a loop over Hugging Face's processor and model."""
        from transformers import ImageGPTImageProcessor, ImageGPTModel  # noqa: PLC0415 (slow to import)
        from transformers.utils import logging  # noqa: PLC0415

        logging.disable_progress_bar()
        with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as temporary:
            to_hugging_face(self.model.bundle, Path(temporary))
            model = ImageGPTModel.from_pretrained(temporary).eval()
            processor = ImageGPTImageProcessor.from_pretrained(temporary)
        config = self.model.bundle.model.config

        @torch.inference_mode()
        def features(files: list[Path]) -> np.ndarray:
            # Shrunk as for training; their processor shrinks bilinearly.
            side = (config.resolution, config.resolution)
            pictures = [Image.open(file).convert("RGB").resize(side, Image.Resampling.BOX) for file in files]
            tokens_BT = processor(pictures, return_tensors="pt")["input_ids"]
            start_B1 = torch.full((len(tokens_BT), 1), config.colours)
            states = model(torch.cat([start_B1, tokens_BT[:, :-1]], 1), output_hidden_states=True).hidden_states
            return model.h[self.layer].ln_1(states[self.layer]).mean(1).numpy()

        return lambda: rate(lambda: self._loop(features, "hugging_face.npy"), len(self.files))

    def _loop(self, features: Callable[[list[Path]], np.ndarray], name: str) -> None:
        starts = range(0, len(self.files), _AT_ONCE)
        np.save(self.work / name, np.concatenate([features(self.files[begin : begin + _AT_ONCE]) for begin in starts]))

    def differences(self) -> dict[str, float]:
        """The largest difference between the features of a batch and those of the loops."""
        rows = pq.read_table(self.work / "batch" / "parts").sort_by("uri")
        assert rows["uri"].to_pylist() == [str(file) for file in self.files], "every image is there once"
        ours = arrow.pixels_of(rows[f"layer_{self.layer}"])
        return {
            name: float(np.abs(ours - np.load(self.work / f"{name}.npy")).max()) for name in ("predict", "hugging_face")
        }


def write_images(folder: Path, count: int, size: int) -> Iterator[Path]:
    """PNG files of smooth random colours."""
    random = np.random.default_rng(1)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        path = folder / f"{number:06d}.png"
        small.resize((size, size), Image.Resampling.BICUBIC).save(path)
        yield path


def main() -> None:
    """Write images, run the contestants in turn, compare their features, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    defaults = (("layers", 6), ("width", 256), ("resolution", 32), ("images", 512), ("size", 64), ("rounds", 5))
    for name, default in defaults:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    about = machine("ray", "torch", "transformers", "numpy")
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    bundle = make_model(options.layers, options.width, options.resolution)
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as temporary:
        raw = Path(temporary) / "raw"
        raw.mkdir()
        files = list(write_images(raw, options.images, options.size))
        layer = options.layers // 2
        contest = Contest(
            model=ProbedModel(bundle=bundle, best_layer=layer),
            raw=raw,
            files=files,
            layer=layer,
            work=Path(temporary),
        )
        ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
        try:
            contest.batch()  # starts the workers
            contestants = {"batch": contest.batch, "predict": contest.predict, "hugging_face": contest.hugging_face()}
            rates = interleave(contestants, options.rounds)
            differences = contest.differences()
        finally:
            ray.shutdown()
    assert max(differences.values()) < 1e-3, differences
    save(
        "batch",
        {
            "machine": about,
            "model": {"parameters": bundle.model.config.parameters, **vars(options), "layer": layer},
            "images_per_second": {name: series.summary() for name, series in rates.items()},
            "batch_over_predict": ratio(rates["batch"], rates["predict"]),
            "batch_over_hugging_face": ratio(rates["batch"], rates["hugging_face"]),
            "largest_difference": differences,
        },
    )


if __name__ == "__main__":
    main()
