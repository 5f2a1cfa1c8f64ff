"""The sections of a report on a training: what the model draws, and the curve of its losses."""

import math

import numpy as np

from flows.pretrain import PretrainOutcome
from flows.previews import shown_keys
from flows.report import pictures
from flows.report.content import Curve, Fact, Facts, Gallery, Group, Picture, Section, Table, Text
from igpt_model.config import PretrainConfig
from igpt_model.evaluating.sample_quality import SURE, SampleQuality
from igpt_model.tracking import figures, sheets
from igpt_model.tracking.runs import RunLogger
from pipeline.dataset.shards import KEY_LENGTH
from pipeline.dataset.snapshot import Snapshot
from pipeline.images import palette
from pipeline.samples.shard_cache import ShardCache

_REAL_IMAGES, _COLUMNS = 60, 10
_WHAT = {
    "samples": "Images that the model draws from nothing, not selected.",
    "completions": "Held-out images, their upper half that the model was given, and five ways in which it goes on.",
    "upscaled": "Held-out images, their small versions that the model was given, and what it makes of them.",
    "reconstructions": "Held-out images: with some pixels hidden, and what the model puts there.",
}


def drawn(trained: PretrainOutcome, config: PretrainConfig, data: Snapshot, logger: RunLogger) -> Section:
    """The sheets of the finished model, and before them those of its checkpoints as one moving picture."""
    groups = []
    for name, png in trained.sheets.items():
        keys = shown_keys(config, data, name)
        steps = {**logger.pictures_by_step(name, pictures.FRAMES - 1), trained.result.steps: png}
        what = _WHAT.get(name, name)
        sheet = Picture(data=pictures.sheet(png), alt=what, caption=f"after {trained.result.steps:,} steps", keys=keys)
        moving = pictures.moving(steps)
        shown = [sheet]
        if moving is not None:
            caption = "over the training"
            shown.insert(0, Picture(data=moving, alt=f"{what} {caption}", caption=caption, keys=keys, moves=True))
        groups.append(Group(title=name.capitalize(), text=what, pictures=tuple(shown)))
        if name == "samples":
            real = Group(
                title="Training images", text="for comparison, picked at random.", pictures=(_real(config, data),)
            )
            groups.append(real)
    blocks = (Gallery(groups=tuple(groups), layout="wide"),) if groups else ()
    return Section(name="drawn", title="What the model draws", blocks=blocks)


def _real(config: PretrainConfig, data: Snapshot) -> Picture:
    """Some training images as the model is given them, as many as a sheet of samples has."""
    images = ShardCache(data, config.execution.cache).open(data.of_split("train")[0])
    rows = np.sort(np.random.default_rng(0).permutation(len(images.labels_N))[:_REAL_IMAGES])
    pixels = list(palette.to_pixels(images.tokens_NHW[rows], data.palette()))
    lines = [pixels[start : start + _COLUMNS] for start in range(0, len(pixels), _COLUMNS)]
    keys = tuple(images.view.key(row)[:KEY_LENGTH] for row in rows.tolist())
    return Picture(data=pictures.sheet(sheets.to_png(sheets.sheet(lines))), alt="Training images", keys=keys)


def quality(samples: SampleQuality, classes: tuple[str, ...]) -> Section:
    """How good samples are beside held-out images: whether they can be named, what they show, whether they are new."""
    text = Text(
        text=f"{samples.samples:,} samples at temperature 1, beside {samples.held_out_images:,} held-out images, by a "
        f"classifier that was trained on the real images alone; it names {samples.classifier_accuracy:.1%} of the "
        f"held-out ones rightly. A picture can be named if it gives one class more than {SURE:.0%}."
    )
    measures = [
        ("can be named", f"{samples.sure_samples:.1%}", f"{samples.sure_held_out:.1%}"),
        (
            "median distance to the nearest training image, 0 to 255 (learned by heart: 0)",
            f"{samples.sample_distance:.1f}",
            f"{samples.held_out_distance:.1f}",
        ),
    ]
    columns = ("measure", "samples", "held-out images")
    beside = Table(columns=columns, rows=tuple(measures))
    shares: list[dict[str, object]] = [
        {"class": name, "of the samples": f"{share:.1%}"}
        for name, share in zip(classes, samples.class_shares, strict=True)
    ]
    by_class = Table.of(shares, caption="What the samples are taken for")
    return Section(name="quality", title="How good its samples are", blocks=(text, beside, by_class))


def losses(trained: PretrainOutcome, logger: RunLogger) -> Section:
    """The losses over the steps beside those of models without a network."""
    result, levels = trained.result, trained.baselines
    by_name = {
        "uniform": levels.uniform,
        "unigram": levels.unigram,
        "per-position unigram": levels.position_unigram,
    }
    names = {"training": "train_loss", "validation": "validation_loss"}
    histories = {label: logger.metric_history(name) for label, name in names.items()}
    curve = Curve(
        svg=figures.loss_curve_svg({label: points for label, points in histories.items() if points}, by_name),
        description="Training and validation loss in nats per pixel over the steps. The grey lines need no network: "
        "all colours alike (uniform), colours by how frequent they are (unigram), the same at each position.",
    )
    facts = (
        Fact(
            name="validation loss",
            value=f"{result.validation_loss:.3f} nats per pixel, {result.validation_loss / math.log(2):.3f} bits",
            note=f"on {result.validation_images:,} images that it was not trained on",
        ),
        *(Fact(name=name, value=f"{value:.3f} nats per pixel") for name, value in by_name.items()),
        Fact(name="parameters", value=f"{result.parameters:,}"),
        Fact(name="steps", value=f"{result.steps:,}", note=f"{result.images:,} images"),
        Fact(name="speed", value=f"{result.images_per_second:,.0f} images a second"),
        *([Fact(name="restarts", value=f"{result.restarts:,}")] if result.restarts else []),
    )
    return Section(name="loss", title="Loss", blocks=(curve, Facts(facts=facts)))
