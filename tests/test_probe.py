"""The linear probe: it finds what is linear, never looks at the test split to choose, and says what it compared."""

import numpy as np
from sklearn.datasets import load_digits

from igpt_model.config import ProbeConfig
from igpt_model.probe import LabelledFeatures, ProbeResult, ProbeScore, fit_probe

CONFIG = ProbeConfig(model="m", dataset="d", strengths=(0.001, 0.1))


def digits() -> list[LabelledFeatures]:
    data = load_digits()
    cuts = [slice(0, 900), slice(900, 1300), slice(1300, 1797)]
    return [LabelledFeatures(features=data.data[cut].astype(np.float32), labels=data.target[cut]) for cut in cuts]


def test_raw_digits_are_nearly_linear() -> None:
    score = fit_probe(*digits(), CONFIG)
    assert 0.88 < score.test_accuracy < 0.99
    assert score.strength == 0.1


def test_features_without_information_give_chance() -> None:
    random = np.random.default_rng(0)
    noise = [
        LabelledFeatures(features=random.normal(size=(len(p.labels), 8)).astype(np.float32), labels=p.labels)
        for p in digits()
    ]
    assert fit_probe(*noise, CONFIG).test_accuracy < 0.2


def test_a_poisoned_test_split_changes_the_test_accuracy_alone() -> None:
    train, validation, test = digits()
    honest = fit_probe(train, validation, test, CONFIG)
    poisoned = LabelledFeatures(features=test.features * -50, labels=(test.labels + 1) % 10)
    score = fit_probe(train, validation, poisoned, CONFIG)
    assert (score.strength, score.validation_accuracy) == (honest.strength, honest.validation_accuracy)
    assert score.test_accuracy < honest.test_accuracy


def test_the_best_layer_is_the_one_that_validation_likes() -> None:
    def score(validation: float, test: float) -> ProbeScore:
        return ProbeScore(test_accuracy=test, validation_accuracy=validation, strength=1.0)

    result = ProbeResult(
        layers=(score(0.5, 0.9), score(0.7, 0.6), score(0.6, 0.8)),
        untrained_layers=(score(0.3, 0.2), score(0.2, 0.4)),
        raw_pixels=score(0.1, 0.1),
        majority=0.1,
        train_images=1,
        validation_images=1,
        test_images=1,
    )
    assert result.best_layer == 1
    assert result.best.test_accuracy == 0.6
    assert result.untrained_best.test_accuracy == 0.2
