"""The sections of a report on a probe: accuracy by layer, the confused classes, and nearest neighbours."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flows import probe_report
from flows.report import pictures
from flows.report.content import Block, Curve, Gallery, Group, Mark, Matrix, Picture, Section, Table, Text
from igpt_model.probing.checkpoint_scores import CheckpointScore
from igpt_model.probing.result import ProbeResult
from igpt_model.tracking import figures
from pipeline.dataset.snapshot import Snapshot
from pipeline.images import palette

_MAX_CLASSES = 30  # of a matrix that fits a page
_CONFUSED_PAIRS = 10


def checkpoints(scores: Sequence[CheckpointScore], line: str) -> Section:
    """The linear probes of checkpoints against their losses; `line` says what came out."""
    rows = probe_report.checkpoints_table(scores)
    curve = Curve(
        svg=figures.features_by_loss_svg(scores),
        description="Test accuracy of the linear probe, at the layer chosen on validation images, by validation loss; "
        "better losses are to the right.",
    )
    return Section(name="checkpoints", title="Features by loss", blocks=(Text(text=f"{line}."), curve, Table.of(rows)))


def layers(result: ProbeResult, classes: tuple[str, ...]) -> Section:
    """The linear probe of every layer with its baselines, and the other kinds of probe at the best layer."""
    features = {
        "mean": "the mean of an image's features",
        "rows": "the features of each row of an image in turn",
        "none": "the features of every pixel of an image",
    }
    text = Text(
        text=f"A linear classifier on {features[result.pooling]}, fitted on {result.train_images:,} images. Layer "
        f"{result.best_layer} was chosen on {result.validation_images:,} validation images; accuracies are of "
        f"{result.test_images:,} test images that nothing was fitted or chosen on. Always saying the most frequent "
        f"class gives {result.majority:.1%}."
    )
    curve = Curve(
        svg=figures.probe_curve_svg(result),
        description="Test accuracy of each layer's linear probe, beside the same network untrained and raw pixels.",
    )
    rows = probe_report.table(result, classes)
    if all(row["paper"] == probe_report.NO_VALUE for row in rows):
        rows = [{name: value for name, value in row.items() if name != "paper"} for row in rows]
    kinds = Table.of(rows, caption="At the best layer, in percent of the test images")
    by_layer = Table.of(probe_report.layers_table(result), caption="By layer, in percent")
    return Section(name="probe", title="Features by layer", blocks=(text, curve, kinds, by_layer))


def by_rows(result: ProbeResult, classes: tuple[str, ...]) -> Section:
    """The same of features that keep the rows of an image apart, beside a probe of their mean."""
    return replace(layers(result, classes), name="probe-by-rows", title="Features of each row, by layer")


def confusion(result: ProbeResult, classes: tuple[str, ...]) -> Section:
    """Which classes the best layer's probe takes for which."""
    blocks: list[Block] = []
    if (counts_KK := result.confusion_KK) is not None:
        if len(classes) <= _MAX_CLASSES:
            blocks.append(Matrix(classes=classes, counts_KK=counts_KK))
        if rows := _confused(counts_KK, classes):
            blocks.append(Table.of(rows, caption="The pairs that are confused most often"))
    return Section(name="confusion", title=f"Confused classes, layer {result.best_layer}", blocks=tuple(blocks))


def _confused(counts_KK: np.ndarray, classes: Sequence[str]) -> list[dict[str, object]]:
    wrong_KK = counts_KK * ~np.eye(len(counts_KK), dtype=bool)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:_CONFUSED_PAIRS]
    pairs = [divmod(int(place), len(classes)) for place in order]
    return [
        {"class": classes[true], "taken for": classes[said], "test images": int(wrong_KK[true, said])}
        for true, said in pairs
        if wrong_KK[true, said]
    ]


def neighbours(result: ProbeResult, data: Snapshot) -> Section:
    """Some test images with their nearest training images by the features of the best layer."""
    sheet = result.sheet
    blocks: list[Block] = []
    if sheet is not None and sheet.test_keys:
        colours_K3 = data.palette()
        groups = []
        for number, (key, label) in enumerate(zip(sheet.test_keys, sheet.test_labels_N.tolist(), strict=True)):
            row = [_picture(sheet.test_tokens_NT[number], colours_K3, key, f"test: {data.classes[label]}", "")]
            near = zip(
                sheet.train_tokens_NKT[number], sheet.train_keys[number], sheet.train_labels_NK[number], strict=True
            )
            for tokens_T, near_key, near_label in near:
                mark: Mark = "right" if near_label == label else "wrong"
                row.append(_picture(tokens_T, colours_K3, near_key, data.classes[int(near_label)], mark))
            groups.append(Group(pictures=tuple(row)))
        caption = (
            f"In each row a test image, picked at random, then its nearest training images by the features of layer "
            f"{result.best_layer}: of the same class with a green frame, of another with a red one."
        )
        blocks.append(Gallery(groups=tuple(groups), layout="rows", caption=caption))
    return Section(name="neighbours", title="Nearest neighbours", blocks=tuple(blocks))


def _picture(tokens_T: np.ndarray, colours_K3: np.ndarray, key: str, caption: str, mark: Mark) -> Picture:
    side = int(len(tokens_T) ** 0.5)
    pixels = palette.to_pixels(tokens_T.reshape(side, side), colours_K3)
    return Picture(data=pictures.tile(pixels), alt=caption, caption=caption, keys=(key,), mark=mark)
