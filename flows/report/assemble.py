"""The report of a refresh, which has all sections, and that of a probe, which has those of a probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.config.refresh import RefreshConfig
from flows.pretrain import PretrainOutcome
from flows.report import dataset, origin, probing, training
from flows.report.content import Fact, Report, Section
from flows.report.origin import Origin
from flows.terminal.memory import StageCost
from igpt_model.evaluating.sample_quality import SampleQuality
from igpt_model.probing.checkpoint_scores import CheckpointScore, names_of
from igpt_model.probing.config import ProbeConfig
from igpt_model.probing.result import ProbeResult
from igpt_model.tracking.runs import RunLogger
from pipeline.build.build import BuildResult
from pipeline.dataset.snapshot import Snapshot
from pipeline.inspect.rejected_pictures import rejected_pictures
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class Further:
    """What a demo measures beside its refresh; none: was not."""

    by_rows: ProbeResult | None = None
    """The probe of features that keep the rows of an image apart."""
    samples: SampleQuality | None = None


NOTHING_FURTHER = Further()


def of_refresh(
    config: RefreshConfig,
    built: BuildResult,
    trained: PretrainOutcome,
    probed: ProbeResult,
    costs: Mapping[str, StageCost],
    made_by: Origin,
    logger: RunLogger,
    further: Further = NOTHING_FURTHER,
) -> Report:
    """The report of a refresh, with pictures from the MLflow run of its training."""
    data, result = built.snapshot, trained.result
    loss, levels = result.validation_loss, trained.baselines
    headline = (
        Fact(name="validation loss", value=f"{loss:.3f}", note=f"nats per pixel; unigram {levels.unigram:.3f}"),
        *_headline(probed),
        *_further_headline(further),
        Fact(name="images", value=f"{data.images():,}", note=f"{sum(data.rejected.values()):,} rejected"),
        *_time(costs),
    )
    shown = rejected_pictures(data, config.dataset) if data.rejected else []
    pretrained = config.pretrain.with_fields(dataset=data.dataset, snapshot=data.number)
    return Report(
        title=f"{config.pretrain.tracking.model_name}, trained on {objects.name_of(data.dataset)}",
        subtitle=f"An Image GPT of {result.parameters:,} parameters, trained for {result.steps:,} steps on snapshot "
        f"{data.number} of {data.dataset}; registered as {made_by.model}.",
        headline=headline,
        dataset=data.dataset,
        sections=(
            training.drawn(trained, pretrained, data, logger),
            *([] if further.samples is None else [training.quality(further.samples, data.classes)]),
            training.losses(trained, logger),
            *_of_probe(probed, data),
            *([] if further.by_rows is None else [probing.by_rows(further.by_rows, data.classes)]),
            dataset.counts(built),
            dataset.rejected(built, shown),
            origin.costs(costs),
            origin.lineage(made_by, data),
            origin.settings({"dataset": config.dataset, "training": config.pretrain.resolved(), "probe": config.probe}),
        ),
    )


def of_probe(
    config: ProbeConfig, probed: ProbeResult, data: Snapshot, costs: Mapping[str, StageCost], made_by: Origin
) -> Report:
    """The report of a probe by itself."""
    return Report(
        title=f"Probe of {made_by.model}",
        subtitle=f"Classifiers on the features of each layer, on snapshot {data.number} of {data.dataset}.",
        headline=(*_headline(probed), Fact(name="test images", value=f"{probed.test_images:,}"), *_time(costs)),
        dataset=data.dataset,
        sections=(
            *_of_probe(probed, data),
            origin.costs(costs),
            origin.lineage(made_by, data),
            origin.settings({"probe": config}),
        ),
    )


def of_checkpoints(
    config: ProbeConfig,
    scores: Sequence[CheckpointScore],
    line: str,
    data: Snapshot,
    costs: Mapping[str, StageCost],
    made_by: Origin,
) -> Report:
    """The report of a probe of many checkpoints; `line` says what came out."""
    lowest = min(scores, key=lambda score: score.validation_loss)
    note = f"of test images, {names_of(scores)[lowest.run]}, step {lowest.step:,}"
    return Report(
        title=f"Probe of the checkpoints of {made_by.model}",
        subtitle=f"Linear probes against validation losses, on snapshot {data.number} of {data.dataset}.",
        headline=(
            Fact(name="checkpoints", value=f"{len(scores):,}"),
            Fact(name="linear probe at the lowest loss", value=f"{lowest.test_accuracy:.1%}", note=note),
            *_time(costs),
        ),
        dataset=data.dataset,
        sections=(
            probing.checkpoints(scores, line),
            origin.costs(costs),
            origin.lineage(made_by, data),
            origin.settings({"probe": config}),
        ),
    )


def _of_probe(probed: ProbeResult, data: Snapshot) -> tuple[Section, ...]:
    return (
        probing.layers(probed, data.classes),
        probing.confusion(probed, data.classes),
        probing.neighbours(probed, data),
    )


def _headline(probed: ProbeResult) -> tuple[Fact, ...]:
    return (
        Fact(
            name="linear probe",
            value=f"{probed.best.test_accuracy:.1%}",
            note=f"of test images, layer {probed.best_layer}",
        ),
        Fact(
            name="raw pixels",
            value=f"{probed.raw_pixels.test_accuracy:.1%}",
            note=f"untrained network {probed.untrained_best.test_accuracy:.1%}",
        ),
    )


def _further_headline(further: Further) -> tuple[Fact, ...]:
    facts = []
    if (probed := further.by_rows) is not None:
        note = f"of test images, layer {probed.best_layer}"
        facts.append(Fact(name="probe by rows", value=f"{probed.best.test_accuracy:.1%}", note=note))
    if (samples := further.samples) is not None:
        note = f"of {samples.samples:,}; of held-out images {samples.sure_held_out:.1%}"
        facts.append(Fact(name="samples that can be named", value=f"{samples.sure_samples:.1%}", note=note))
    return tuple(facts)


def _time(costs: Mapping[str, StageCost]) -> tuple[Fact, ...]:
    seconds = round(sum(cost.seconds for cost in costs.values()))
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
    return (Fact(name="time", value=text, note="of all stages"),) if costs else ()
