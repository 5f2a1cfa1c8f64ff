"""The rank correlation of loss and accuracy over checkpoints."""

import pytest

from igpt_model.probing.checkpoint_scores import CheckpointScore, names_of, rank_correlation


def scores(*pairs: tuple[float, float], run: str = "one") -> list[CheckpointScore]:
    return [
        CheckpointScore(run=run, parameters=9, step=step, validation_loss=loss, layer=1, test_accuracy=accuracy)
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


def test_runs_are_called_by_their_folders_unless_two_have_the_same_name() -> None:
    of_runs = [score for run in ("s3://a/best", "s3://b/best", "s3://a/wide") for score in scores((1.0, 1.0), run=run)]
    assert names_of(of_runs) == {"s3://a/best": "s3://a/best", "s3://b/best": "s3://b/best", "s3://a/wide": "wide"}
