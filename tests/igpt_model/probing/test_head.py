"""A stored head classifies as the fitted one does."""

import numpy as np

from igpt_model.probing.head import ProbeHead
from igpt_model.probing.linear import (
    LabelledFeatures,
    SplitFeatures,
    fit_probe,
)
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
