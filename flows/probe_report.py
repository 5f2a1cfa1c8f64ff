"""The results of a probe as a line, as tables and as metrics."""

from collections.abc import Mapping, Sequence

from igpt_model.probing import paper
from igpt_model.probing.checkpoint_scores import CheckpointScore, names_of
from igpt_model.probing.linear import LowDataScore
from igpt_model.probing.result import SOURCES, ProbeResult

NO_VALUE = "-"
"""Stands where a probe was not done, or the paper has no value."""
SUPERVISED = "supervised convolutional network"


def describe(result: ProbeResult) -> str:
    """One line on the results of a probe."""
    return (
        f"layer {result.best_layer} classifies {result.best.test_accuracy:.1%} of {result.test_images} test images "
        f"(untrained network {result.untrained_best.test_accuracy:.1%}, raw pixels "
        f"{result.raw_pixels.test_accuracy:.1%}, most frequent class {result.majority:.1%})"
    )


def layers_table(result: ProbeResult) -> list[dict[str, object]]:
    """Test accuracy of every layer's linear probe, in percent."""
    return [
        {
            "layer": layer,
            "pretrained": round(100 * trained.test_accuracy, 1),
            "untrained": round(100 * untrained.test_accuracy, 1),
            "raw pixels": round(100 * result.raw_pixels.test_accuracy, 1),
        }
        for layer, (trained, untrained) in enumerate(zip(result.layers, result.untrained_layers, strict=True))
    ]


def table(result: ProbeResult, classes: tuple[str, ...]) -> list[dict[str, object]]:
    """Test accuracy of each kind of probe in percent, beside the paper's value where it has one.

    Networks are probed at the layer with the best validation accuracy.
    """
    benchmark = paper.benchmark_of(classes) or ""
    best = (result.best, result.untrained_best, result.raw_pixels)
    linear = [100 * score.test_accuracy for score in best]
    rows = [_row("linear probe", [f"{value:.1f}" for value in linear], _largest(paper.LINEAR_PROBE, benchmark))]
    counts = [score.labels_per_class for score in next(iter(result.low_data.values()), ())]
    for index, count in enumerate(counts):
        cells = [_spread(result.low_data[source][index]) for source in SOURCES]
        by_model = paper.LOW_DATA.get(benchmark, {}).get(count, {})
        rows.append(_row(f"{count} labels a class", cells, _of_models(by_model)))
    if result.neighbours:
        cells = [f"{100 * result.neighbours[source].test_accuracy:.1f}" for source in SOURCES]
        rows.append(_row("nearest neighbours", cells, NO_VALUE))
    if result.fine_tuned:
        cells = [f"{100 * score.test_accuracy:.1f}" for score in result.fine_tuned.values()]
        rows.append(_row("fine-tuned", [*cells, NO_VALUE], _largest(paper.FINE_TUNED, benchmark)))
    return rows + _supervised_rows(result)


def _supervised_rows(result: ProbeResult) -> list[dict[str, object]]:
    """Of the convolutional network, which sees raw pixels."""
    cells = {}
    if result.supervised is not None:
        cells[SUPERVISED] = f"{100 * result.supervised.test_accuracy:.1f}"
    for few in result.supervised_low_data:
        cells[f"{SUPERVISED}, {few.labels_per_class} labels a class"] = _spread(few)
    return [_row(name, [NO_VALUE, NO_VALUE, cell], NO_VALUE) for name, cell in cells.items()]


def _spread(few: LowDataScore) -> str:
    return f"{100 * few.mean:.1f} ± {100 * few.deviation:.1f}"


def _row(name: str, cells: list[str], paper_value: str) -> dict[str, object]:
    return {"test accuracy, %": name, **dict(zip(SOURCES, cells, strict=True)), "paper": paper_value}


def _largest(values: paper.Accuracies, benchmark: str) -> str:
    return _of_models(values.get(benchmark, {}))


def _of_models(by_model: Mapping[str, object]) -> str:
    return ", ".join(f"{model} {value}" for model, value in by_model.items()) or NO_VALUE


def checkpoints_table(scores: Sequence[CheckpointScore]) -> list[dict[str, object]]:
    """A row for each checkpoint; accuracies in percent."""
    names = names_of(scores)
    return [
        {
            "run": names[score.run],
            "parameters": score.parameters,
            "step": score.step,
            "validation loss": round(score.validation_loss, 4),
            "layer": score.layer,
            "test accuracy, %": round(100 * score.test_accuracy, 1),
        }
        for score in scores
    ]


def metrics(result: ProbeResult) -> dict[str, float]:
    """The results by the names of their MLflow metrics; those of features that are not averaged have names apart."""
    values = {
        "probe_best_layer": float(result.best_layer),
        "probe_best_test_accuracy": result.best.test_accuracy,
        "probe_best_validation_accuracy": result.best.validation_accuracy,
        "probe_untrained_best_test_accuracy": result.untrained_best.test_accuracy,
        "probe_raw_pixels_test_accuracy": result.raw_pixels.test_accuracy,
    }
    for source in SOURCES:
        name = source.replace(" ", "_")
        for few in result.low_data.get(source, ()):
            values[f"probe_{few.labels_per_class}_labels_{name}_mean"] = few.mean
            values[f"probe_{few.labels_per_class}_labels_{name}_deviation"] = few.deviation
        if source in result.neighbours:
            values[f"probe_neighbours_{name}_test_accuracy"] = result.neighbours[source].test_accuracy
        if source in result.fine_tuned:
            values[f"probe_fine_tuned_{name}_test_accuracy"] = result.fine_tuned[source].test_accuracy
    if result.supervised is not None:
        values["probe_supervised_test_accuracy"] = result.supervised.test_accuracy
    for few in result.supervised_low_data:
        values[f"probe_{few.labels_per_class}_labels_supervised_mean"] = few.mean
        values[f"probe_{few.labels_per_class}_labels_supervised_deviation"] = few.deviation
    if result.pooling == "mean":
        return values
    return {f"probe_{result.pooling}_{name.removeprefix('probe_')}": value for name, value in values.items()}
