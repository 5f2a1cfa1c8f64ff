"""A stored head classifies as the fitted one does."""

from dataclasses import replace

import numpy as np
import pytest

from igpt_model.probing.head import FILE, ProbeHead
from igpt_model.probing.linear import (
    LabelledFeatures,
    SplitFeatures,
    fit_probe,
)
from pipeline.errors import IgptError
from tests.igpt_model.probing.test_linear import ITERATIONS, STRENGTHS


def test_a_stored_head_of_two_classes(digits: SplitFeatures, tmp_path) -> None:
    def only(part: LabelledFeatures) -> LabelledFeatures:
        rows = np.isin(part.labels, (3, 8))
        return LabelledFeatures(features=part.features[rows], labels=part.labels[rows])

    two = SplitFeatures(train=only(digits.train), validation=only(digits.validation), test=only(digits.test))
    fitted = fit_probe(two, STRENGTHS, ITERATIONS)
    fitted.head.save(tmp_path)
    kept = ProbeHead.load(tmp_path)
    assert kept is not None
    predicted = kept.labels_K[kept.probabilities(two.test.features).argmax(1)]
    assert set(kept.labels_K) == {3, 8}
    assert (predicted == two.test.labels).mean() == fitted.score.test_accuracy > 0.9


def test_a_head_keeps_the_pooling_of_its_features_and_that_of_averaged_ones_is_the_file_of_before(tmp_path) -> None:
    head = ProbeHead(
        mean_C=np.zeros(6, np.float32),
        scale_C=np.ones(6, np.float32),
        weight_KC=np.arange(12, dtype=np.float32).reshape(2, 6),
        bias_K=np.zeros(2, np.float32),
        labels_K=np.array([0, 2]),
    )
    head.save(tmp_path)
    of_before = (tmp_path / FILE).read_bytes()
    assert b"pooling" not in of_before and ProbeHead.load(tmp_path).pooling == "mean"
    replace(head, pooling="rows").save(tmp_path)
    kept = ProbeHead.load(tmp_path)
    assert kept.pooling == "rows"
    rows_NRC = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    assert np.array_equal(kept.probabilities(rows_NRC), head.probabilities(rows_NRC.reshape(4, 6)))
    replace(head, pooling="median").save(tmp_path)
    with pytest.raises(IgptError, match=r"damaged \(pooling is 'median'"):
        ProbeHead.load(tmp_path)
