"""Figures of results, as PNG files."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from igpt_model.probe import ProbeResult


def probe_curve(result: ProbeResult) -> bytes:
    """Test accuracy over the layers, beside the untrained network and raw pixels."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="layer", ylabel="test accuracy, %", title="Linear probe")
    layers = range(len(result.layers))
    axes.plot(layers, [100 * s.test_accuracy for s in result.layers], "o-", label="pretrained")
    axes.plot(layers, [100 * s.test_accuracy for s in result.untrained_layers], "o--", label="untrained network")
    axes.axhline(100 * result.raw_pixels.test_accuracy, color="grey", label="raw pixels")
    axes.legend()
    return _png(figure)


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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
