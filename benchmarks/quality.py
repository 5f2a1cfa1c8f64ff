"""The quality of a model after a given training time: validation loss, linear probe by layer, and pictures.

    python -m benchmarks.quality --dataset DATASET --minutes 20 --preset igpt-s --device cuda

For CIFAR-10 build the dataset from its training tar: `igpt dataset build raw=cifar10-train.tar resolution=32
validation_fraction=0.02 test_fraction=0.1 ...`. The paper's 96.3% on CIFAR-10 come from 1.4 billion parameters,
pretrained on ImageNet; this is the first point of a curve towards that.
"""

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import RESULTS
from benchmarks.measure_device import machine, save
from igpt_model.config import PretrainConfig
from igpt_model.inference.features import image_features, untrained
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.config import ProbeConfig
from igpt_model.probing.linear import LabelledFeatures, ProbeScore, SplitFeatures, fit_probe
from igpt_model.runs.open_model import load_model, on_device
from igpt_model.tracking import sheets
from igpt_model.training.loop import train
from igpt_model.training.standalone import Printer
from igpt_model.worker import Worker
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.samples.shard_cache import ShardCache, batches

_SHOWN = 8
_TRIAL_STEPS = 30


def steps_in(minutes: float, config: PretrainConfig, data: Snapshot, worker: Worker) -> int:
    """The number of steps that fit into the time, extrapolated from the last two thirds of a short training."""
    moments: list[float] = []
    trial = config.with_fields(steps=_TRIAL_STEPS, evaluate_every=10**9, checkpoint_every=10**9)
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as folder:
        few = tuple(entry for entry in data.of_split("validation")[:1])
        short = replace(data, shards=(*data.of_split("train"), *few))
        train(trial, short, folder, worker, Printer(), heartbeat=lambda step: moments.append(time.monotonic()))
    warm = _TRIAL_STEPS // 3
    seconds = (moments[-1] - moments[warm]) / (len(moments) - 1 - warm)
    return max(_TRIAL_STEPS, int(60 * minutes / seconds))


def features_of(
    bundle: ModelBundle, data: Snapshot, cache: ShardCache, split: str, most: int
) -> list[LabelledFeatures]:
    """The features of every layer for the first labelled images of a split."""
    parts, labels, count = [], [], 0
    for images in batches([cache.open(shard) for shard in data.of_split(split)], 512):
        kept = images.labels_N >= 0
        tokens_BT = torch.from_numpy(images.tokens_NT[kept].astype(np.int64)).to(bundle.model.positions.device)
        parts.append(image_features(bundle, tokens_BT).cpu().numpy())
        labels.append(images.labels_N[kept])
        count += len(labels[-1])
        if count >= most:
            break
    features_LNC, labels_N = np.concatenate(parts, 1)[:, :most], np.concatenate(labels)[:most]
    return [LabelledFeatures(features=features_NC, labels=labels_N) for features_NC in features_LNC]


def probe(bundle: ModelBundle, data: Snapshot, cache: ShardCache, config: ProbeConfig) -> list[ProbeScore]:
    """The linear probe of every layer: fitted on training images, chosen on validation, reported on test."""
    splits = [
        features_of(bundle, data, cache, split, most)
        for split, most in (("train", config.max_train_images), ("validation", 10**9), ("test", 10**9))
    ]
    layers = [SplitFeatures(train=train, validation=held, test=test) for train, held, test in zip(*splits, strict=True)]
    return [fit_probe(features, config.strengths, config.max_iterations).score for features in layers]


def main() -> None:
    """Train, probe, draw, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dataset", required=True, help="a dataset built with `igpt dataset build`, with labels")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; the pictures go there too")
    parser.add_argument("--minutes", type=float, default=20, help="minutes of training, without evaluations")
    parser.add_argument("--preset", default="igpt-s")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--learning-rate", type=float, default=None)
    parser.add_argument("--probe-images", type=int, default=20_000, help="training images for fitting the probe")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=None, help="result files, without extension")
    options = parser.parse_args()
    device, on_gpu = torch.device(options.device), options.device == "cuda"
    described = machine(device)
    data = snapshot.read(options.dataset)
    config = PretrainConfig.from_fields(
        runs=str(options.run.parent),
        preset=options.preset,
        global_batch=options.batch,
        micro_batch=options.micro_batch,
        learning_rate=options.learning_rate,
        warmup_steps=20,
        precision="bfloat16" if on_gpu else "float32",
        compile=on_gpu,
        flip=True,
        workers=1,
    )
    worker = Worker(device=device)
    steps = steps_in(options.minutes, config, data, worker)
    config = config.with_fields(
        steps=steps, warmup_steps=steps // 20, evaluate_every=max(1, steps // 8), checkpoint_every=steps
    )
    result = train(config, data, str(options.run), worker, Printer())
    bundle = on_device(load_model(str(options.run)), options.device)
    fresh = replace(bundle, model=untrained(bundle.model, seed=0).to(device))
    cache, probing = ShardCache(data), ProbeConfig(max_train_images=options.probe_images)
    trained, untaught = (probe(model, data, cache, probing) for model in (bundle, fresh))
    held_out = next(batches([cache.open(data.of_split("validation")[0])], _SHOWN))
    for name in sheets.sheet_names(bundle):
        sheet = sheets.draw_sheet(bundle, name, held_out.tokens_NT, held_out.labels_N, 0)
        (options.run / f"{name}.png").write_bytes(sheets.to_png(sheet))
    rows = [
        {
            "layer": layer,
            "test accuracy, trained": f"{ours.test_accuracy:.1%}",
            "validation accuracy, trained": f"{ours.validation_accuracy:.1%}",
            "test accuracy, untrained": f"{theirs.test_accuracy:.1%}",
        }
        for layer, (ours, theirs) in enumerate(zip(trained, untaught, strict=True))
    ]
    loss = result.validation_loss
    notes = (
        f"{config.model.preset}, {result.parameters:,} parameters, {data.resolution}x{data.resolution}, "
        f"{data.colours} colours, {data.samples('train'):,} training images; {steps:,} steps of "
        f"{config.optimizer.global_batch}, {result.seconds / 60:.1f} minutes, {result.images_per_second:.0f} images/s. "
        f"Validation loss {loss:.4f} nats per pixel, {loss / math.log(2):.4f} bits, on "
        f"{result.validation_images:,} images. Linear probe fitted on "
        f"{min(options.probe_images, data.samples('train')):,} images."
    )
    save(options.output or RESULTS / f"quality-{options.device}", "What is learnt", described, rows, notes)


if __name__ == "__main__":
    main()
