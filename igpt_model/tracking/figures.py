"""Result figures, as PNG files."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from igpt_model.probing.checkpoint_scores import CheckpointScore, names_of, rank_correlation
from igpt_model.probing.result import ProbeResult
from pipeline.printable import printable

_MAX_LABELLED_CLASSES = 30  # with more, names and numbers would overlap
_MAX_NAME_LENGTH = 30


def probe_curve(result: ProbeResult) -> bytes:
    """Test accuracy by layer, compared with the untrained network and raw pixels."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="layer", ylabel="test accuracy, %", title="Linear probe")
    layers = range(len(result.layers))
    axes.plot(layers, [100 * s.test_accuracy for s in result.layers], "o-", label="pretrained")
    axes.plot(layers, [100 * s.test_accuracy for s in result.untrained_layers], "o--", label="untrained network")
    axes.axhline(100 * result.raw_pixels.test_accuracy, color="grey", label="raw pixels")
    axes.legend()
    return _png(figure)


def confusion_matrix(confusion_KK: np.ndarray, classes: Sequence[str]) -> bytes:
    """Numbers of test images by true class (row) and predicted class (column)."""
    shares_KK = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    side = max(4.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted class", ylabel="class", title="Best layer, test images")
    axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _MAX_LABELLED_CLASSES:
        names = [_tick(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), names, parse_math=False)
        for (row, column), count in np.ndenumerate(confusion_KK):
            if count:
                color = "white" if shares_KK[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    return _png(figure)


def _tick(name: str) -> str:
    """A class name beside an axis: printable and cut, so that a long one leaves room for the matrix."""
    shown = printable(name)
    return shown if len(shown) <= _MAX_NAME_LENGTH else f"{shown[: _MAX_NAME_LENGTH - 3]}..."


def loss_curve(histories: Mapping[str, Sequence[tuple[int, float]]], baselines: Mapping[str, float]) -> bytes:
    """Losses over the steps, in nats per pixel, with horizontal lines for the baselines."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="nats per pixel", title="Pretraining loss")
    for name, history in histories.items():
        axes.plot([step for step, _ in history], [value for _, value in history], label=name)
    for (name, value), style in zip(baselines.items(), (":", "--", "-."), strict=False):
        axes.axhline(value, color="grey", linestyle=style, label=name)
    axes.legend()
    return _png(figure)


def features_by_loss(scores: Sequence[CheckpointScore]) -> bytes:
    """Test accuracy of the linear probe against validation loss, a line for each run, its last checkpoint filled."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="validation loss, nats per pixel", ylabel="test accuracy, %")
    correlation = rank_correlation(scores)
    shown = "" if correlation is None else f", rank correlation {correlation:.2f}"
    axes.set_title(f"Linear probe by checkpoint{shown}")
    for run, name in names_of(scores).items():
        of_run = [score for score in scores if score.run == run]
        losses = [score.validation_loss for score in of_run]
        accuracies = [100 * score.test_accuracy for score in of_run]
        label = f"{_tick(name)}, {of_run[0].parameters:,} parameters"
        (line,) = axes.plot(losses, accuracies, "o-", markerfacecolor="white", label=label)
        axes.plot(losses[-1:], accuracies[-1:], "o", color=line.get_color())
        for score in (of_run[0], of_run[-1]):
            place = (score.validation_loss, 100 * score.test_accuracy)
            axes.annotate(f"step {score.step:,}", place, xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.invert_xaxis()  # better to the right, as in the paper
    axes.legend(loc="lower right", fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
