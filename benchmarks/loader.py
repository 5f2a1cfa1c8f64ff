"""Load batches from memory-mapped shards, in training and with TorchDataset, beside the webdataset reader.

    python -m benchmarks.loader --dataset /path/or/s3/of/a/dataset [--preset igpt-s --device cuda]

Also measures the share of loading in a training step, with a training of a few steps on that dataset.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from benchmarks.measure import RESULTS
from benchmarks.measure_device import interleave, machine, ratio, save
from igpt_model.config import PretrainConfig
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.readers.torch_dataset import TorchDataset
from pipeline.samples.order import SampleOrder
from pipeline.samples.shard_cache import ShardCache, gather
from pipeline.store import objects

_BATCH = 128


def by_view(data: Snapshot, cache: ShardCache, shards: int, batches: int) -> Callable[[], int]:
    """Reads random batches of the first shards through their memory-mapped arrays; returns the number of images."""
    entries = data.of_split("train")[:shards]
    views = [cache.open(entry) for entry in entries]
    order = SampleOrder([entry.samples for entry in entries], seed=0, window_shards=shards)
    position = 0

    def read() -> int:
        nonlocal position
        for _ in range(batches):
            images = gather(views, order.at(position, position + _BATCH))
            assert images.tokens_NT.shape == (_BATCH, data.resolution**2)
            position += _BATCH
        return batches * _BATCH

    return read


def by_webdataset(path: Path, batches: int, *, shuffled: bool) -> Callable[[], int]:
    """Reads batches of a shard with the webdataset package, in the shard's order or through its shuffle buffer."""

    def read() -> int:
        samples = webdataset.WebDataset(str(path), shardshuffle=False)
        if shuffled:
            samples = samples.shuffle(1000)
        images = 0
        for tokens, labels in samples.decode().to_tuple("npy", "cls").batched(_BATCH, partial=False):
            assert np.shape(tokens)[0] == len(labels) == _BATCH
            images += _BATCH
            if images >= batches * _BATCH:
                break
        return images

    return read


def by_torch_dataset(data: Snapshot, cache: str, batches: int, *, shuffled: bool) -> Callable[[], int]:
    """Reads batches of the training split with the reader for PyTorch, collated by a DataLoader; opens it each time."""

    def read() -> int:
        samples = TorchDataset(data.dataset, split="train", shuffle=shuffled, cache=cache)
        images = 0
        for batch in DataLoader(samples, batch_size=_BATCH, drop_last=True):
            assert batch["tokens"].shape[0] == len(batch["label"]) == _BATCH
            images += _BATCH
            if images >= batches * _BATCH:
                break
        return images

    return read


class _Quiet:
    """A listener that keeps the last metrics."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.last = values

    def warn(self, line: str) -> None:
        print(line)

    def saved(self, step: int) -> None:
        """Ignore checkpoints."""


def share_of_a_step(data: Snapshot, config: PretrainConfig, device: torch.device) -> dict[str, object]:
    """The share of loading in a short training."""
    callbacks = _Quiet()
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as folder:
        few = tuple(replace(entry, split="validation") for entry in data.of_split("validation")[:1])
        data = replace(data, shards=(*data.of_split("train"), *few))
        train(config, data, folder, Worker(device=device), callbacks)
    return {
        "contender": f"share of a step of {config.model.preset} at {data.resolution}x{data.resolution}, batch "
        f"{config.optimizer.global_batch}, {device.type}",
        "images/s": "",
        "microseconds a batch": "",
        "times longer than ours": f"{callbacks.last['data_wait_share']:.3%} of the step",
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dataset", required=True, help="a dataset built with `igpt dataset build`")
    parser.add_argument("--preset", default="tiny", help="preset of the training whose step is measured")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batches", type=int, default=30, help="batches per round")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS / "loader", help="result files, without extension")
    options = parser.parse_args()
    device = torch.device(options.device)
    described = machine(device)
    data = snapshot.read(options.dataset)
    entry = data.of_split("train")[0]
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as folder:
        cache = ShardCache(data, folder)
        path = Path(folder) / "shard.tar"
        objects.download(objects.join(data.dataset, entry.path), path)
        batches = min(options.batches, entry.samples // _BATCH)
        every = len(data.of_split("train"))
        runs = {
            "ours": by_view(data, cache, 1, batches),
            f"ours, all {every} shards mixed": by_view(data, cache, every, batches),
            "torch dataset, in order": by_torch_dataset(data, folder, batches, shuffled=False),
            "torch dataset, shuffled": by_torch_dataset(data, folder, batches, shuffled=True),
            "webdataset, in order": by_webdataset(path, batches, shuffled=False),
            "webdataset, shuffled": by_webdataset(path, batches, shuffled=True),
        }
        for name, run in runs.items():
            assert run() == batches * _BATCH, name
        seconds = interleave(runs, options.rounds, torch.device("cpu"))
        rows: list[dict[str, object]] = [
            {
                "contender": name,
                "images/s": batches * _BATCH / min(measured),
                "microseconds a batch": 1e6 * min(measured) / batches,
                "times longer than ours": ratio(measured, seconds["ours"]),
                "_seconds": measured,
            }
            for name, measured in seconds.items()
        ]
        config = PretrainConfig.from_fields(
            runs="unused",
            preset=options.preset,
            steps=options.steps,
            global_batch=_BATCH,
            evaluate_every=10**6,
            checkpoint_every=10**6,
            precision="bfloat16" if device.type == "cuda" else "float32",
            compile=device.type == "cuda",
            cache=folder,
            workers=1,
        )
        rows.append(share_of_a_step(data, config, device))
    notes = (
        f"Batches of {_BATCH} images of {data.resolution}x{data.resolution} from a shard of {entry.samples}, tokens "
        "and labels."
    )
    save(options.output, "Loading", described, rows, notes)


if __name__ == "__main__":
    main()
