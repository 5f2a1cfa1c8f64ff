"""The rank correlation of loss and accuracy over checkpoints."""

import pytest

from igpt_model.probing.checkpoint_scores import CheckpointScore, rank_correlation


def scores(*pairs: tuple[float, float]) -> list[CheckpointScore]:
    return [
        CheckpointScore(run="one", parameters=9, step=step, validation_loss=loss, layer=1, test_accuracy=accuracy)
        for step, (loss, accuracy) in enumerate(pairs, 1)
    ]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (((3.0, 0.1), (2.0, 0.2), (1.9, 0.9)), 1.0),
        (((3.0, 0.9), (2.0, 0.2), (1.9, 0.1)), -1.0),
        (((3.0, 0.1), (2.0, 0.3), (1.9, 0.2)), 0.5),
        (((3.0, 0.1), (2.0, 0.2)), None),
        (((3.0, 0.1), (3.0, 0.2), (3.0, 0.3)), None),
        (((3.0, 0.1), (2.0, 0.1), (1.0, 0.1)), None),
    ],
)
def test_it_is_one_where_a_lower_loss_always_means_a_higher_accuracy(
    pairs: tuple[tuple[float, float], ...], expected: float | None
) -> None:
    assert rank_correlation(scores(*pairs)) == (expected if expected is None else pytest.approx(expected))
