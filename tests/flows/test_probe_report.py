"""A probe as a line, as tables beside the paper's values, and as metrics."""

from dataclasses import replace

import pytest

from flows.probe_report import describe, layers_table, metrics, table
from igpt_model.probing.linear import LowDataScore, NeighbourScore, ProbeScore
from igpt_model.probing.result import SOURCES, ProbeResult, TrainedScore
from tests.igpt_model.probing.test_paper import CIFAR10


def score(test: float, validation: float) -> ProbeScore:
    return ProbeScore(test_accuracy=test, validation_accuracy=validation, strength=1.0)


RESULT = ProbeResult(
    layers=(score(0.9, 0.5), score(0.75, 0.7)),
    untrained_layers=(score(0.3, 0.4), score(0.9, 0.2)),
    raw_pixels=score(0.4, 0.4),
    majority=0.1,
    train_images=900,
    validation_images=400,
    test_images=497,
)
FULL = replace(
    RESULT,
    low_data={
        source: tuple(
            LowDataScore(labels_per_class=count, draws=3, mean=0.01 * count, deviation=0.015) for count in (1, 25)
        )
        for source in SOURCES
    },
    neighbours={source: NeighbourScore(test_accuracy=0.5, validation_accuracy=0.5, neighbours=5) for source in SOURCES},
    fine_tuned={source: TrainedScore(test_accuracy=0.8, validation_accuracy=0.8, step=10) for source in SOURCES[:2]},
    supervised=TrainedScore(test_accuracy=0.95, validation_accuracy=0.9, step=20),
    supervised_low_data=(LowDataScore(labels_per_class=25, draws=3, mean=0.6, deviation=0.02),),
)


def test_the_line_is_about_the_layer_chosen_on_validation() -> None:
    assert describe(RESULT) == (
        "layer 1 classifies 75.0% of 497 test images (untrained network 30.0%, raw pixels 40.0%, "
        "most frequent class 10.0%)"
    )


def test_layers_are_in_percent() -> None:
    assert layers_table(RESULT) == [
        {"layer": 0, "pretrained": 90.0, "untrained": 30.0, "raw pixels": 40.0},
        {"layer": 1, "pretrained": 75.0, "untrained": 90.0, "raw pixels": 40.0},
    ]


def test_a_row_for_each_kind_of_probe_that_was_done() -> None:
    assert [list(row.values()) for row in table(RESULT, ("a", "b"))] == [["linear probe", "75.0", "30.0", "40.0", "-"]]
    assert [list(row.values()) for row in table(FULL, CIFAR10)] == [
        ["linear probe", "75.0", "30.0", "40.0", "iGPT-L 96.3"],
        ["1 labels a class", *["1.0 ± 1.5"] * 3, "-"],
        ["25 labels a class", *["25.0 ± 1.5"] * 3, "iGPT-L 87.6 ± 0.6"],
        ["nearest neighbours", "50.0", "50.0", "50.0", "-"],
        ["fine-tuned", "80.0", "80.0", "-", "iGPT-L 99.0"],
        ["supervised convolutional network", "-", "-", "95.0", "-"],
        ["supervised convolutional network, 25 labels a class", "-", "-", "60.0 ± 2.0", "-"],
    ]


def test_metrics_are_named_by_probe_and_source() -> None:
    plain, full = metrics(RESULT), metrics(FULL)
    assert plain == {
        "probe_best_layer": 1.0,
        "probe_best_test_accuracy": 0.75,
        "probe_best_validation_accuracy": 0.7,
        "probe_untrained_best_test_accuracy": 0.3,
        "probe_raw_pixels_test_accuracy": 0.4,
    }
    assert plain.items() <= full.items()
    assert full["probe_25_labels_raw_pixels_mean"] == pytest.approx(0.25)
    assert len(full) == len(plain) + 2 * 2 * 3 + 3 + 2 + 3
    rows = metrics(replace(FULL, pooling="rows"))
    assert rows["probe_rows_best_layer"] == 1.0 and len(rows) == len(full) and not set(rows) & set(full)
