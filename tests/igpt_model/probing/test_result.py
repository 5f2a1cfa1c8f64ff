"""The best layer of a result."""

from igpt_model.probing.linear import (
    ProbeScore,
)
from igpt_model.probing.result import ProbeResult


def test_the_best_layer_is_selected_on_validation() -> None:
    def score(validation: float, test: float) -> ProbeScore:
        return ProbeScore(test_accuracy=test, validation_accuracy=validation, strength=1.0)

    result = ProbeResult(
        layers=(score(0.5, 0.9), score(0.7, 0.6), score(0.6, 0.8)),
        untrained_layers=(score(0.3, 0.2), score(0.2, 0.4)),
        raw_pixels=score(0.1, 0.1),
        majority=0.1,
        train_images=1,
        validation_images=1,
        test_images=1,
    )
    assert result.best_layer == 1
    assert result.best.test_accuracy == 0.6
    assert result.untrained_best.test_accuracy == 0.2
