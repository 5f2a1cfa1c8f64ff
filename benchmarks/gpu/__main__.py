"""Use a few minutes of a GPU well: what is right, how fast steps and drawing are, and what six minutes teach a model.

    python -m benchmarks.gpu --out FOLDER                                       # correctness, speed, drawing
    python -m benchmarks.gpu --out FOLDER --parts pretraining --dataset DATASET --minutes 6 preset=igpt-s layers=12

Runs with torch, numpy, pyarrow, pillow, safetensors and scikit-learn alone. Each part has its own process and limit;
results.json and report.md in the folder have what was measured so far. FIELD=VALUE are fields of the pretraining.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu.parts import LIMITS, Ending, run
from benchmarks.gpu.report import Report
from benchmarks.gpu.settings import Settings
from benchmarks.measure_device import machine


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=None, help="all that can be run")
    parser.add_argument("--dataset", default=None, help="a labelled dataset to pretrain on")
    parser.add_argument("--minutes", type=float, default=6.0, help="of pretraining")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, tiny")
    parser.add_argument("--limit", type=float, default=None, help="seconds after which any part is ended")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help="fields of the pretraining")
    options = parser.parse_intermixed_args()
    parts = options.parts or [part for part in LIMITS if part != "pretraining" or options.dataset]
    if "pretraining" in parts and not options.dataset:
        parser.error("pretraining needs --dataset: give a dataset that `igpt dataset build` made")
    settings = Settings(
        device_name=options.device,
        out=options.out.absolute(),
        dataset=options.dataset,
        minutes=options.minutes,
        fields=dict(_field(text, parser) for text in options.fields),
    )
    described = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", **machine(torch.device(options.device))}
    endings: list[Ending] = []
    report = Report(settings.out, described, endings)
    limits = {part: options.limit or LIMITS[part] for part in parts}
    run(limits, settings, report.add, endings)
    report.write()
    for ending in endings:
        print(f"{ending.part}: {ending.seconds:.0f} s{f', {ending.error}' if ending.error else ''}", flush=True)
    if any(ending.error for ending in endings):
        raise SystemExit(1)


def _field(text: str, parser: argparse.ArgumentParser) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        parser.error(f"{text!r} is no field: write FIELD=VALUE, as in layers=12")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    main()
