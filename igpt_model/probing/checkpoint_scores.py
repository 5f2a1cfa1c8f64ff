"""How well the features of checkpoints classify, beside how well they predict pixels.

Chen et al. 2020 claim (section 4.2) that a better generative model has better features: along a training, and over
sizes at the same loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class CheckpointScore:
    """A checkpoint of a run with its linear probe, at the layer chosen on validation images."""

    run: str
    """URL of the run's folder."""
    parameters: int
    step: int
    validation_loss: float
    """Nats per pixel, of the images that every evaluation of a run evaluates."""
    layer: int
    test_accuracy: float
    """0 to 1."""


def names_of(scores: Sequence[CheckpointScore]) -> dict[str, str]:
    """What to call each run: the name of its folder, or its URL where two folders have the same name."""
    runs = list(dict.fromkeys(score.run for score in scores))
    names = [objects.name_of(run) for run in runs]
    return {run: name if names.count(name) == 1 else run for run, name in zip(runs, names, strict=True)}


def rank_correlation(scores: Sequence[CheckpointScore]) -> float | None:
    """Spearman's, of the loss turned around and the accuracy: 1 where a lower loss always means a higher accuracy.

    None with fewer than three checkpoints, or where all losses or all accuracies are the same.
    """
    from scipy.stats import spearmanr  # noqa: PLC0415 (takes half a second to import)

    losses, accuracies = [-score.validation_loss for score in scores], [score.test_accuracy for score in scores]
    if len(scores) < 3 or len(set(losses)) == 1 or len(set(accuracies)) == 1:
        return None
    return float(spearmanr(losses, accuracies).statistic)
