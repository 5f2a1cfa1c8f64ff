"""The demo: a whole refresh of real images on one machine, with local services, and a summary of its results."""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from prefect import flow

from flows import trust
from flows.config.demo import DIGITS_URL
from flows.config.refresh import RefreshConfig
from flows.prefect_ops.failures import in_one_line
from flows.prefect_ops.names import making
from flows.probe import probe
from flows.refresh import RefreshOutcome, leave_report, run_stages
from flows.report.assemble import Further
from flows.services import settings
from flows.terminal.console import Reporter, console
from flows.terminal.memory import StageMeter
from igpt_model.evaluating.draw_and_compare import draw_and_compare
from igpt_model.evaluating.sample_quality import SURE, SampleQuality
from igpt_model.probing.result import ProbeResult
from igpt_model.runs.open_model import open_model
from pipeline.errors import IgptError
from pipeline.store import objects

_Result = TypeVar("_Result")
_SAMPLES = 500


def encode_digits(url: str) -> dict[str, bytes]:
    """scikit-learn's 1,797 handwritten digits as PNG files, {url}/{class}/{number}.png."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (takes a second to import, and only the demo needs it)

    digits = load_digits()
    contents = {}
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
        contents[f"{url}/{label}/{number:04d}.png"] = buffer.getvalue()
    return contents


def upload_digits() -> None:
    """Upload the digits to the bucket, unless they are there already."""
    contents = encode_digits(DIGITS_URL)
    uploaded = {file.url for file in objects.list_files(DIGITS_URL)}
    missing = {url: data for url, data in contents.items() if url not in uploaded}
    if missing:
        objects.write_many(missing)


@flow(name="demo", flow_run_name=making("demo of {}", "config.pretrain.tracking.model_name"))
@in_one_line
def demo(config: RefreshConfig, roots: list[int], folder: Path) -> None:
    """Run a refresh, then write its pictures, its report and summary.json to a folder and print the summary."""
    meter = StageMeter(roots)
    if config.dataset.raw == DIGITS_URL:
        reporter = Reporter("upload")
        with meter.measure("upload"):
            upload_digits()
        reporter.say(f"1,797 handwritten digits are in {DIGITS_URL} as PNG files")
    outcome = run_stages(config, meter)
    by_rows = None
    if config.dataset.raw == DIGITS_URL:  # of more and larger images it would take longer than the training
        with meter.measure("probe_by_rows"):
            by_rows = _or_line("probe", lambda: _probe_by_rows(config, outcome))
    with meter.measure("samples"):
        samples = _or_line("samples", lambda: _compare_samples(config, outcome))
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        **{f"{name}.png": picture for name, picture in outcome.pretrain.sheets.items()},
        "loss.png": outcome.pretrain.loss_curve,
        "probe.png": outcome.probe.curve,
    }
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    report = leave_report(config, outcome, meter, folder, Further(by_rows=by_rows, samples=samples))
    paths = {name.removesuffix(".png"): str(folder / name) for name in pictures}
    summary = summarize(outcome, meter, paths, report, by_rows, samples)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show(summary, folder / "summary.json")


def _or_line(stage: str, work: Callable[[], _Result]) -> _Result | None:
    """The result of what is done beside the refresh; where it fails, a line, since the summary is there without it."""
    try:
        return work()
    except IgptError as error:
        Reporter(stage).say(f"left out: {error}")
        return None


def _probe_by_rows(config: RefreshConfig, outcome: RefreshOutcome) -> ProbeResult:
    """Probe features that keep the vertical position: averages over the rows of an image."""
    data = outcome.build.snapshot
    by_rows = replace(
        config.probe, pooling="rows", model=outcome.pretrain.run, dataset=data.dataset, snapshot=data.number
    )
    return probe(by_rows, mlflow_run=outcome.pretrain.mlflow_run).result


def _compare_samples(config: RefreshConfig, outcome: RefreshOutcome) -> SampleQuality | None:
    reporter = Reporter("samples")
    bundle = open_model(outcome.pretrain.run, trust.registry(settings.load().mlflow_tracking_uri).open)
    seed = config.pretrain.optimizer.seed
    quality = draw_and_compare(
        bundle, outcome.build.snapshot, config.pretrain.data, count=_SAMPLES, seed=seed, progress=reporter
    )
    reporter.close()
    return quality


def summarize(
    outcome: RefreshOutcome,
    meter: StageMeter,
    pictures: dict[str, str],
    report: Path | None,
    by_rows: ProbeResult | None,
    samples: SampleQuality | None,
) -> dict[str, Any]:
    """The content of summary.json; without the parts that were not measured."""
    built, trained, probed = outcome.build, outcome.pretrain, outcome.probe.result
    result = trained.result
    return {
        "dataset": {
            "url": built.snapshot.dataset,
            "snapshot": built.snapshot.number,
            "content_digest": built.snapshot.content_digest,
            "manifest_digest": built.snapshot.manifest_digest,
            "images_in": built.planned.images_in,
            "images_in_shards": built.snapshot.images(),
            "images_rejected": built.snapshot.rejected,
            "ignored_files": sum(built.planned.left_out.values()),
            "split": {name: built.snapshot.samples(name) for name in ("train", "validation", "test")},
            "shards": len(built.snapshot.shards),
            "resolution": built.snapshot.resolution,
            "colours": built.snapshot.colours,
            "palette_sha256": built.snapshot.palette_sha256,
            "classes": len(built.snapshot.classes),
        },
        "training": {
            "run": trained.run,
            "parameters": result.parameters,
            "steps": result.steps,
            "images": result.images,
            "images_per_second": round(result.images_per_second, 1),
            "restarts": result.restarts,
            "validation_loss_nats_per_pixel": round(result.validation_loss, 6),
            "validation_bits_per_pixel": round(result.validation_loss / math.log(2), 6),
            "baselines_nats_per_pixel": {name: round(v, 4) for name, v in asdict(trained.baselines).items()},
        },
        "probe": {
            **_probe_summary(probed),
            "raw_pixels_accuracy": round(probed.raw_pixels.test_accuracy, 4),
            "most_frequent_class_accuracy": round(probed.majority, 4),
        },
        **({} if by_rows is None else {"probe_by_rows": _probe_summary(by_rows)}),
        **({} if samples is None else {"samples": _samples_summary(samples)}),
        "model_uri": outcome.model_uri,
        "mlflow_run_url": trained.mlflow_url,
        "pictures": pictures,
        "report": None if report is None else str(report),
        "stages": {
            name: {"seconds": round(cost.seconds, 1), "peak_memory_mib": cost.peak_memory_bytes >> 20}
            for name, cost in meter.costs.items()
        },
    }


def _probe_summary(probed: ProbeResult) -> dict[str, Any]:
    return {
        "train_images": probed.train_images,
        "test_images": probed.test_images,
        "best_layer": probed.best_layer,
        "best_layer_accuracy": round(probed.best.test_accuracy, 4),
        "accuracy_by_layer": [round(score.test_accuracy, 4) for score in probed.layers],
        "untrained_accuracy_by_layer": [round(score.test_accuracy, 4) for score in probed.untrained_layers],
    }


def _samples_summary(samples: SampleQuality) -> dict[str, Any]:
    return {
        "drawn": samples.samples,
        "held_out_images": samples.held_out_images,
        "named_share": round(samples.sure_samples, 4),
        "held_out_named_share": round(samples.sure_held_out, 4),
        "classifier_accuracy": round(samples.classifier_accuracy, 4),
        "share_by_class": [round(share, 4) for share in samples.class_shares],
        "distance_to_nearest_training_image": round(samples.sample_distance, 2),
        "held_out_distance_to_nearest_training_image": round(samples.held_out_distance, 2),
    }


def show(summary: dict[str, Any], path: Path) -> None:
    """Print a summary as text."""
    data, training, probed = summary["dataset"], summary["training"], summary["probe"]
    rejected = sum(data["images_rejected"].values())
    reasons = "".join(f", {count} {reason}" for reason, count in data["images_rejected"].items())
    levels = training["baselines_nats_per_pixel"]
    rows = [
        ("images", f"{data['images_in']:,} in, {data['images_in_shards']:,} in shards, {rejected} rejected{reasons}"),
        (
            "dataset",
            f"{data['shards']} shards at {data['resolution']}x{data['resolution']}, "
            f"palette of {data['colours']} colours {data['palette_sha256'][:12]}",
        ),
        (
            "training",
            f"{training['parameters']:,} parameters, {training['steps']:,} steps, "
            f"{training['images_per_second']:,.0f} images/s",
        ),
        (
            "validation loss",
            f"{training['validation_loss_nats_per_pixel']:.3f} nats per pixel (uniform {levels['uniform']:.3f}, "
            f"unigram {levels['unigram']:.3f}, per-position unigram {levels['position_unigram']:.3f})",
        ),
        (
            "probe",
            f"{probed['best_layer_accuracy']:.1%} at layer {probed['best_layer']}, chosen on validation "
            f"(raw pixels {probed['raw_pixels_accuracy']:.1%}, "
            f"untrained network {max(probed['untrained_accuracy_by_layer']):.1%} at its best)",
        ),
        ("  by layer", _percents(probed["accuracy_by_layer"])),
        ("  untrained", _percents(probed["untrained_accuracy_by_layer"])),
        *_by_rows_shown(summary),
        *_samples_shown(summary),
        ("model", summary["model_uri"]),
        ("MLflow run", summary["mlflow_run_url"]),
        ("pictures", "  ".join(summary["pictures"].values())),
        ("report", summary["report"] or "could not be made"),
        ("summary", str(path)),
    ]
    for name, cost in summary["stages"].items():
        rows.append((f"  {name}", f"{cost['seconds']:.0f} s, peak memory {cost['peak_memory_mib']:,} MiB"))
    console.print()
    for name, text in rows:
        console.print(f"{name:16} {text}")


def _by_rows_shown(summary: dict[str, Any]) -> list[tuple[str, str]]:
    if "probe_by_rows" not in summary:
        return []
    probed = summary["probe_by_rows"]
    text = (
        f"{probed['best_layer_accuracy']:.1%} at layer {probed['best_layer']}, of features averaged over each row "
        f"instead of the image (untrained network {max(probed['untrained_accuracy_by_layer']):.1%} at its best)"
    )
    return [("probe by rows", text), ("  by layer", _percents(probed["accuracy_by_layer"]))]


def _samples_shown(summary: dict[str, Any]) -> list[tuple[str, str]]:
    if "samples" not in summary:
        return []
    samples = summary["samples"]
    named = (
        f"{samples['named_share']:.1%} of {samples['drawn']} can be named (held-out images "
        f"{samples['held_out_named_share']:.1%}): a classifier of real images gives a class more than {SURE:.0%}"
    )
    nearest = (
        f"{samples['distance_to_nearest_training_image']:.1f} of 255 is the median distance to the nearest training "
        f"image (held-out images {samples['held_out_distance_to_nearest_training_image']:.1f}; learned by heart: 0)"
    )
    by_class = _percents(samples["share_by_class"])
    return [("samples", named), ("  by class", by_class), ("  new", nearest)]


def _percents(shares: Sequence[float]) -> str:
    return "  ".join(f"{share:.1%}" for share in shares)
