"""What the figures show: the curves over layers and steps, and the confusion of classes. Each is a PNG file.

For pages, curves are SVG elements.
"""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from igpt_model.probing.checkpoint_scores import CheckpointScore
from igpt_model.probing.linear import ProbeScore
from igpt_model.probing.result import ProbeResult
from igpt_model.tracking import figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn."""
    drawn: list[Figure] = []
    to_png = figures._png
    monkeypatch.setattr(figures, "_png", lambda figure: (drawn.append(figure), to_png(figure))[1])
    return drawn


def score(accuracy: float) -> ProbeScore:
    return ProbeScore(test_accuracy=accuracy, validation_accuracy=0.0, strength=1.0)


def curves_of(figure: Figure) -> dict[str, list[float]]:
    (axes,) = figure.axes
    return {str(line.get_label()): [float(y) for y in np.asarray(line.get_ydata())] for line in axes.lines}


def test_a_probe_is_drawn_in_percent_by_layer(drawn: list[Figure]) -> None:
    result = ProbeResult(
        layers=(score(0.5), score(0.75)),
        untrained_layers=(score(0.25), score(0.125)),
        raw_pixels=score(0.375),
        majority=0.1,
        train_images=1,
        validation_images=1,
        test_images=1,
    )
    png = figures.probe_curve(result)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    expected = {"pretrained": [50, 75], "untrained network": [25, 12.5], "raw pixels": [37.5, 37.5]}
    assert curves_of(drawn[0]) == expected


def test_losses_are_drawn_with_their_baselines(drawn: list[Figure]) -> None:
    figures.loss_curve({"training": [(10, 2.5), (20, 2.0)], "validation": [(20, 2.25)]}, {"uniform": 2.75})
    assert curves_of(drawn[0]) == {"training": [2.5, 2.0], "validation": [2.25], "uniform": [2.75, 2.75]}


def test_checkpoints_are_drawn_by_loss_a_line_for_each_run(drawn: list[Figure]) -> None:
    def checkpoint(run: str, step: int, loss: float, accuracy: float) -> CheckpointScore:
        return CheckpointScore(
            run=run, parameters=1000 * len(run), step=step, validation_loss=loss, layer=1, test_accuracy=accuracy
        )

    scores = [checkpoint("a", 10, 3.0, 0.5), checkpoint("a", 20, 2.5, 0.625), checkpoint("$bb", 10, 2.0, 0.75)]
    png = figures.features_by_loss(scores)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    curves = curves_of(drawn[0])
    assert (curves["a, 1,000 parameters"], curves["$bb, 3,000 parameters"]) == ([50, 62.5], [75])
    (axes,) = drawn[0].axes
    assert axes.get_title() == "Linear probe by checkpoint, rank correlation 1.00"
    assert axes.xaxis_inverted()


def points_of(svg: str) -> int:
    """The most points that a line of a figure has."""
    return max(path.get("d", "").count("L") for path in ElementTree.fromstring(svg).iter("path"))


def test_a_curve_in_a_page_has_its_colours_its_font_and_a_bounded_size() -> None:
    history = [(step, 2 + (step % 7) / 7) for step in range(100_000)]
    svg = figures.loss_curve_svg({"training": history, "validation": [(5, 2.0)]}, {"uniform": 2.75})
    assert svg.startswith("<svg viewBox=") and len(svg) < 60_000 and 100 < points_of(svg) <= 500
    assert "://" not in svg and "font-family" not in svg and "#000000" not in svg and "currentColor" in svg
    for name in ("training", "validation", "uniform", "nats per pixel"):
        assert f">{name}</text>" in svg
    png = figures.loss_curve({"training": [(1, 2.0)]}, {"uniform": 2.75})
    corner = Image.open(io.BytesIO(png)).convert("RGB").getpixel((0, 0))
    assert corner == (255, 255, 255), "what is drawn for a page changes nothing of a file drawn after it"


@pytest.mark.parametrize(("classes", "labelled"), [(3, True), (31, False)])
def test_confusion_is_shown_as_the_share_of_each_class(classes: int, labelled: bool, drawn: list[Figure]) -> None:
    confusion_KK = np.zeros((classes, classes), np.int64)
    confusion_KK[0, :2] = (3, 1)
    confusion_KK[1, 1] = 5  # the third class has no test image
    figures.confusion_matrix(confusion_KK, [f"class {number}" for number in range(classes)])
    (axes,) = drawn[0].axes
    shares_KK = np.asarray(axes.images[0].get_array())
    assert shares_KK[0, :2].tolist() == [0.75, 0.25] and shares_KK[1, 1] == 1 and not shares_KK[2].any()
    assert sorted(text.get_text() for text in axes.texts) == (["1", "3", "5"] if labelled else [])


HOSTILE = ("$", "$x$", r"$\frac{1}{$", "a\nb", "\x1b[31m", "a\0b", "_hidden", "x" * 500, "")


def test_class_names_beside_the_confusion_are_text_and_not_formulas(drawn: list[Figure]) -> None:
    figures.confusion_matrix(np.eye(len(HOSTILE), dtype=int), HOSTILE)
    (axes,) = drawn[0].axes
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_parse_math() for label in labels] == [False] * len(HOSTILE)
        shown = [label.get_text() for label in labels]
        assert shown[:7] == ["$", "$x$", r"$\frac{1}{$", r"a\nb", r"\x1b[31m", r"a\x00b", "_hidden"]
        assert len(shown[7]) == 30 and shown[7].endswith("...") and shown[8] == ""
