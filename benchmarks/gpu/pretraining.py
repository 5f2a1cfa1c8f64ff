"""What a model learns in some minutes on the device: nats per pixel, linear probe by layer, samples and completions.

Beside it, of the real loop: the idle share of the device, what a checkpoint costs the steps, graphs and recompilations.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import linear_probe
from benchmarks.gpu.settings import Record, Settings
from benchmarks.quality import steps_in
from igpt_model.config import PretrainConfig
from igpt_model.inference.features import untrained
from igpt_model.inference.pooling import Pooling
from igpt_model.model.bundle import ModelBundle
from igpt_model.runs.open_model import load_model, on_device
from igpt_model.runs.result import TrainResult
from igpt_model.tracking import sheets
from igpt_model.training.loop import train
from igpt_model.training.parallel import prepare_blocks
from igpt_model.worker import Worker
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.samples.shard_cache import ShardCache, batches

_SHOWN = 8
_PROFILED = range(40, 50)
_TIMED = range(50, 150)
_STRENGTHS = (0.0003, 0.003, 0.03, 0.3, 3.0)


def run(settings: Settings, record: Record) -> None:
    """Train, then probe and draw from the checkpoint."""
    assert settings.dataset is not None
    data = snapshot.read(settings.dataset)
    with TemporaryDirectory(prefix="igpt-benchmark-") as temporary:
        config = _config(settings, temporary)
        worker = Worker(device=settings.device)
        counters.clear()
        began = time.monotonic()
        steps = steps_in(settings.minutes, config, data, worker)
        record("Time spent", {"on": "compiling and a trial of the steps", "seconds": time.monotonic() - began})
        config = config.with_fields(
            steps=steps,
            warmup_steps=max(1, steps // 20),
            evaluate_every=max(1, steps // 6),
            checkpoint_every=max(1, round(0.55 * steps)),
        )
        watch = _Watch(settings, record)
        began = time.monotonic()
        result = train(config, data, str(Path(temporary) / "run"), worker, watch, heartbeat=watch.beat)
        record("Time spent", {"on": "pretraining", "seconds": time.monotonic() - began})
        _record_result(record, config, data, result)
        watch.tell(config)
        began = time.monotonic()
        bundle = on_device(load_model(str(Path(temporary) / "run")), settings.device_name)
        _draw(settings, data, bundle, config)
        record(
            "Time spent", {"on": "loading the checkpoint and drawing 100 images", "seconds": time.monotonic() - began}
        )
        _probe(settings, record, data, bundle, config)


def _config(settings: Settings, runs: str) -> PretrainConfig:
    defaults = {
        "preset": "igpt-s" if settings.on_gpu else "tiny",
        "runs": runs,
        "cache": f"{runs}/cache",
        "precision": "bfloat16" if settings.on_gpu else "float32",
        "compile": settings.on_gpu,
        "flip": True,
        "sample_every": 0,
        "warmup_steps": 20,
        "workers": 1,
        "cpus_per_worker": 8 if settings.on_gpu else 1,
    }
    return PretrainConfig.from_fields(**{**defaults, **settings.fields})


class _Watch:
    """Hears of every step: how long it took, and for some of them how long the device was busy."""

    def __init__(self, settings: Settings, record: Record) -> None:
        self._on_gpu, self._record = settings.on_gpu, record
        self._moments: list[float] = [time.perf_counter()]
        self._profile: profile | None = None
        self._busy = 0.0

    def beat(self, step: int) -> None:
        """Note the end of a step."""
        if self._on_gpu and step == _PROFILED.start:
            torch.cuda.synchronize()
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.start()
        elif self._profile is not None and step == _PROFILED.stop:
            torch.cuda.synchronize()
            self._profile.stop()
            self._busy = _busy_seconds(self._profile) / len(_PROFILED)
            self._profile = None
        self._moments.append(time.perf_counter())

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Keep the losses; print the rest."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"step {step}  {shown}", flush=True)
        if "validation_loss" in values:
            row = {"step": step, "training, nats per pixel": values.get("train_loss", float("nan"))}
            self._record("Losses", {**row, "validation, nats per pixel": values["validation_loss"]})

    def warn(self, line: str) -> None:
        """Print it."""
        print(line, flush=True)

    def saved(self, step: int) -> None:
        """Say when a checkpoint could be read."""
        print(f"checkpoint of step {step} is written", flush=True)

    def tell(self, config: PretrainConfig) -> None:
        """Record what the loop costs beside the steps' own work."""
        seconds = [after - before for before, after in zip(self._moments, self._moments[1:], strict=False)]
        plain = sorted(seconds[_TIMED.start : _TIMED.stop] or seconds)
        usual = median(plain)
        row: dict[str, object] = {
            "ms a step, median of 100": 1000 * usual,
            "ms, mean of 100": 1000 * sum(plain) / len(plain),
        }
        if self._busy:
            row |= {"ms that the device is busy": 1000 * self._busy, "idle": f"{1 - self._busy / usual:.1%}"}
        saved = config.keeping.checkpoint_every
        after = seconds[saved : saved + 40]
        row["s that a checkpoint adds to 40 steps"] = sum(after) - len(after) * usual
        row |= {"graphs": counters["stats"]["unique_graphs"], "graph breaks": sum(counters["graph_break"].values())}
        self._record("The loop", row)


def _busy_seconds(profiled: profile) -> float:
    """The time in which any kernel or copy ran."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, until = 0.0, float("-inf")
    for begin, end in spans:
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy / 1e6


def _record_result(record: Record, config: PretrainConfig, data: Snapshot, result: TrainResult) -> None:
    model = config.model_for(data)
    record(
        "Pretraining",
        {
            "layers, width, heads": f"{model.layers}, {model.width}, {model.heads}",
            "parameters": model.parameters,
            "training images": data.samples("train"),
            "steps": result.steps,
            "batch": config.optimizer.global_batch,
            "learning rate": config.peak_learning_rate,
            "epochs": result.images / data.samples("train"),
            "minutes": result.seconds / 60,
            "images/s": result.images_per_second,
            "skipped steps": result.skipped_steps,
            "validation, nats per pixel": result.validation_loss,
            "on images": result.validation_images,
        },
    )


def _draw(settings: Settings, data: Snapshot, bundle: ModelBundle, config: PretrainConfig) -> None:
    """Write the pictures that show the model."""
    cache = ShardCache(data, config.execution.cache)
    held_out = next(batches([cache.open(data.of_split("validation")[0])], _SHOWN))
    for name in sheets.sheet_names(bundle):
        sheet = sheets.draw_sheet(bundle, name, held_out.tokens_NT, held_out.labels_N, 0, settings.device_name)
        (settings.out / f"{name}.png").write_bytes(sheets.to_png(sheet))


def _probe(settings: Settings, record: Record, data: Snapshot, bundle: ModelBundle, config: PretrainConfig) -> None:
    """Fit a linear probe on every layer of the trained model, then on the best one's of the same untrained.

    Then on the best layer's averages over every row, which tell where in an image something is.
    """
    if config.is_compiled:
        prepare_blocks(bundle.model, config.with_fields(activation_checkpointing=False))
    scores = _scores(settings, data, bundle, config, range(bundle.model.config.layers + 1))
    for layer, score in scores.items():
        record("Linear probe by layer", _score_row("trained", layer, score))
    best = max(scores, key=lambda layer: scores[layer].validation_accuracy)
    by_row = _scores(settings, data, bundle, config, [best], "rows")[best]
    fresh = replace(bundle, model=untrained(bundle.model, seed=0).to(settings.device))
    if config.is_compiled:
        prepare_blocks(fresh.model, config.with_fields(activation_checkpointing=False))
    for layer, score in _scores(settings, data, fresh, config, [best]).items():
        record("Linear probe by layer", _score_row("untrained", layer, score))
    chosen = "Linear probe, the layer that is best on validation"
    record(chosen, {**_score_row("trained", best, scores[best]), "averages": "of the image"})
    record(chosen, {**_score_row("trained", best, by_row), "averages": "of every row"})


def _scores(
    settings: Settings,
    data: Snapshot,
    bundle: ModelBundle,
    config: PretrainConfig,
    layers: Sequence[int],
    pooling: Pooling = "mean",
) -> dict[int, linear_probe.Score]:
    cache = ShardCache(data, config.execution.cache)
    train, validation, test = (
        linear_probe.features_of(bundle, data, cache, split, layers=layers, pooling=pooling)
        for split in ("train", "validation", "test")
    )
    iterations = 100 if settings.on_gpu else 20
    return {
        layer: linear_probe.fit(train, validation, test, place, _STRENGTHS, iterations)
        for place, layer in enumerate(layers)
    }


def _score_row(which: str, layer: int, score: linear_probe.Score) -> dict[str, object]:
    return {
        "network": which,
        "layer": layer,
        "test accuracy": f"{score.test_accuracy:.2%}",
        "validation accuracy": f"{score.validation_accuracy:.2%}",
        "strength": score.strength,
    }
