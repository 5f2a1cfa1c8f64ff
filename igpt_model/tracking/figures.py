"""Result figures, as PNG files and as SVG for pages."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from igpt_model.probing.checkpoint_scores import CheckpointScore, names_of, rank_correlation
from igpt_model.probing.result import ProbeResult
from pipeline.printable import printable

_MAX_LABELLED_CLASSES = 30  # with more, names and numbers would overlap
_MAX_NAME_LENGTH = 30
_MAX_POINTS = 500  # of a curve in SVG, which is as wide as a page
_INK = "#010203"  # stands for the colour of the page's text: no curve has it
# In SVG text stays text, in the page's font.
_SVG_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "igpt",
    "font.family": "sans-serif",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "legend.framealpha": 0.0,
    "savefig.transparent": True,
}
_FONT = re.compile(r"font-family: [^;\"]*; ")
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def probe_curve(result: ProbeResult) -> bytes:
    """Test accuracy by layer, compared with the untrained network and raw pixels."""
    return _png(_probe_figure(result))


def probe_curve_svg(result: ProbeResult) -> str:
    """The same as an SVG element."""
    with matplotlib.rc_context(_SVG_STYLE):
        return _svg(_probe_figure(result))


def _probe_figure(result: ProbeResult) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="layer", ylabel="test accuracy, %", title="Linear probe")
    layers = range(len(result.layers))
    axes.plot(layers, [100 * s.test_accuracy for s in result.layers], "o-", label="pretrained")
    axes.plot(layers, [100 * s.test_accuracy for s in result.untrained_layers], "o--", label="untrained network")
    axes.axhline(100 * result.raw_pixels.test_accuracy, color="grey", label="raw pixels")
    axes.legend()
    return figure


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
    return _png(_loss_figure(histories, baselines))


def loss_curve_svg(histories: Mapping[str, Sequence[tuple[int, float]]], baselines: Mapping[str, float]) -> str:
    """The same as an SVG element, of a bounded number of points."""
    thinned = {name: _thinned(history) for name, history in histories.items()}
    with matplotlib.rc_context(_SVG_STYLE):
        return _svg(_loss_figure(thinned, baselines))


def _thinned(history: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most so many points of a curve, evenly spaced, with its last."""
    rows = np.linspace(0, len(history) - 1, min(len(history), _MAX_POINTS)).round().astype(int)
    return [history[row] for row in rows]


def _loss_figure(histories: Mapping[str, Sequence[tuple[int, float]]], baselines: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="nats per pixel", title="Pretraining loss")
    for name, history in histories.items():
        axes.plot([step for step, _ in history], [value for _, value in history], label=name)
    for (name, value), style in zip(baselines.items(), (":", "--", "-."), strict=False):
        axes.axhline(value, color="grey", linestyle=style, label=name)
    axes.legend()
    return figure


def features_by_loss(scores: Sequence[CheckpointScore]) -> bytes:
    """Test accuracy of the linear probe against validation loss, a line for each run, its last checkpoint filled."""
    return _png(_features_figure(scores))


def features_by_loss_svg(scores: Sequence[CheckpointScore]) -> str:
    """The same as an SVG element."""
    with matplotlib.rc_context(_SVG_STYLE):
        return _svg(_features_figure(scores))


def _features_figure(scores: Sequence[CheckpointScore]) -> Figure:
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
    axes.legend(loc="best", fontsize=8)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    """An SVG element without a document around it, whose lines and texts have the colour of the page's text."""
    figure.axes[0].set_title("")  # the page has a heading
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=_NO_METADATA)
    text = buffer.getvalue().decode()
    # The page's own element around it: a width of the page, and its font.
    within = text[text.index("<svg") :].partition(">")[2]
    within = within.replace(_INK, "currentColor").replace("xlink:href", "href")
    width, height = (72 * inches for inches in figure.get_size_inches())
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img">{_FONT.sub("", within)}'
