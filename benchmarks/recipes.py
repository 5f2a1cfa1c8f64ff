"""Recipes of training side by side, at equal steps or equal time: the losses that each comes to, as curves.

    python -m benchmarks.recipes --dataset DATASET --out FOLDER --minutes 5 optim=adam,learning_rate=0.005 \
        optim=muon,learning_rate=0.01 --common preset=tiny global_batch=128 flip=true

A recipe is fields of the training's config, joined by commas; --common has those of all. All start from the same
seed and see the same images. Runs with torch, numpy, pyarrow, pillow, safetensors and scikit-learn alone.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.parts import Ending
from benchmarks.gpu.report import Report
from benchmarks.measure_device import machine
from benchmarks.quality import steps_in
from igpt_model.config import PretrainConfig
from igpt_model.training.loop import train
from igpt_model.training.standalone import Printer
from igpt_model.worker import Worker
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.typed_config.config_file import load_fields

_EVALUATIONS = 10


class Curve(Printer):
    """Keeps the losses on validation images by step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Note a loss on validation images."""
        if "validation_loss" in values:
            self.losses[step] = values["validation_loss"]


def run(recipe: Sequence[str], options: argparse.Namespace, data: Snapshot, report: Report) -> dict[int, float]:
    """Train by a recipe and report its curve, which is returned: the loss by step."""
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    worker, curve = Worker(device=device), Curve()
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as folder:
        defaults = {"runs": folder, "dataset": data.dataset, "workers": 1, "use_gpu": on_gpu, "sample_every": 0}
        config = load_fields(PretrainConfig, defaults, [*options.common, *recipe])
        steps = options.steps or steps_in(options.minutes, config, data, worker)
        config = config.with_fields(
            steps=steps,
            warmup_steps=max(1, steps // 20),
            evaluate_every=max(1, steps // _EVALUATIONS),
            checkpoint_every=10**9,
        )
        result = train(config, data, f"{folder}/run", worker, curve)
    named = {"recipe": " ".join(recipe)}
    for step, loss in curve.losses.items():
        report.add("Losses", {**named, "step": step, "validation, nats per pixel": loss})
    report.add(
        "Recipes",
        {
            **named,
            "steps": steps,
            "minutes": result.seconds / 60,
            "images/s": result.images_per_second,
            "skipped steps": result.skipped_steps,
            "validation, nats per pixel": result.validation_loss,
        },
    )
    return curve.losses


def share_until(aim: float, curve: Mapping[int, float]) -> float:
    """The share of a curve's steps after which its loss is `aim`; infinite: it never is.

    Between two evaluations the loss is taken to fall evenly.
    """
    before, above = 0, float("inf")
    for step, loss in curve.items():
        if loss <= aim:
            part = (above - aim) / (above - loss) if above < float("inf") else 1.0
            return (before + part * (step - before)) / max(curve)
        before, above = step, loss
    return float("inf")


def main() -> None:
    """Run the recipes one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="FIELD=VALUE,...", help="a recipe")
    parser.add_argument("--dataset", required=True, help="a dataset that `igpt dataset build` made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, default=None, help="of each recipe")
    length.add_argument("--minutes", type=float, default=None, help="of training of each recipe")
    parser.add_argument("--common", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of all recipes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_intermixed_args()
    endings: list[Ending] = []
    report = Report(options.out, machine(torch.device(options.device)), endings)
    data = snapshot.read(options.dataset)
    aim = None
    for recipe in options.recipes:
        curve = run(recipe.split(","), options, data, report)
        aim = min(curve.values()) if aim is None else aim
        share = share_until(aim, curve)
        report.add("Share of a recipe's steps to the best loss of the first", {"recipe": recipe, "share": share})


if __name__ == "__main__":
    main()
