"""A probe by layer, the classes that it confuses, and images with their neighbours under their own keys."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from flows.report import probing
from flows.report.content import Curve, Gallery, Matrix, Table, Text
from igpt_model.probing.result import ProbeResult
from pipeline.images import palette
from tests.flows.report.conftest import HOSTILE, Built
from tests.flows.report.test_assemble import CHECKPOINTS


def test_layers_are_beside_their_baselines(probed: ProbeResult) -> None:
    text, curve, kinds, by_layer = probing.layers(probed, HOSTILE).blocks
    assert isinstance(text, Text) and "Layer 1 was chosen on 400 validation images" in text.text
    assert isinstance(curve, Curve) and ">untrained network</text>" in curve.svg
    assert isinstance(kinds, Table) and "paper" not in kinds.columns, "the paper knows nothing of these classes"
    assert isinstance(by_layer, Table) and by_layer.rows == ((0, 90.0, 30.0, 40.0), (1, 75.0, 90.0, 40.0))


def test_checkpoints_are_a_curve_and_a_table() -> None:
    text, curve, table = probing.checkpoints(CHECKPOINTS, "correlation").blocks
    assert isinstance(text, Text) and text.text == "correlation."
    assert isinstance(curve, Curve) and ">step 10</text>" in curve.svg and "&lt;a&gt;, 9 parameters" in curve.svg
    assert isinstance(table, Table) and table.rows == (("<a>", 9, 10, 2.0, 1, 50.0), ("<a>", 9, 20, 1.5, 1, 75.0))


def test_few_classes_are_a_matrix_and_of_many_only_the_confused_are_named(probed: ProbeResult) -> None:
    matrix, pairs = probing.confusion(probed, HOSTILE).blocks
    assert isinstance(matrix, Matrix) and isinstance(pairs, Table)
    assert pairs.rows == ((HOSTILE[2], HOSTILE[0], 2), (HOSTILE[0], HOSTILE[1], 1))
    many_KK = np.ones((100, 100), np.int64)
    (only,) = probing.confusion(replace(probed, confusion_KK=many_KK), tuple(map(str, range(100)))).blocks
    assert isinstance(only, Table) and len(only.rows) == 10
    assert probing.confusion(replace(probed, confusion_KK=None), HOSTILE).blocks == ()


def test_a_row_is_a_test_image_and_its_neighbours_with_their_keys(probed: ProbeResult, built: Built) -> None:
    data, sheet = built.result.snapshot, probed.sheet
    (gallery,) = probing.neighbours(probed, data).blocks
    assert isinstance(gallery, Gallery) and sheet is not None
    first = gallery.groups[0].pictures
    assert [picture.keys for picture in first] == [(key,) for key in (sheet.test_keys[0], *sheet.train_keys[0])]
    assert [picture.mark for picture in first] == ["", "right", "wrong", "wrong"]
    assert first[1].caption == data.classes[0]
    shown = np.asarray(Image.open(io.BytesIO(first[0].data)).convert("RGB"))
    assert np.array_equal(shown, palette.to_pixels(sheet.test_tokens_NT[0].reshape(8, 8), data.palette()))
    assert probing.neighbours(replace(probed, sheet=None), data).blocks == ()
