"""The probes agree with scikit-learn, use the information in features, and never select on the test split."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from igpt_model.probing.linear import (
    LabelledFeatures,
    SplitFeatures,
    draw_labels,
    fit_probe,
    low_data_score,
    nearest,
    neighbour_score,
)

STRENGTHS, ITERATIONS = (0.001, 0.1), 300


def poisoned(splits: SplitFeatures) -> SplitFeatures:
    """The same with a test split that would mislead any selection that uses it."""
    test = LabelledFeatures(features=splits.test.features * -50, labels=(splits.test.labels + 1) % 10)
    return replace(splits, test=test)


def test_the_probe_agrees_with_scikit_learn(digits: SplitFeatures) -> None:
    probe = fit_probe(digits, STRENGTHS, ITERATIONS)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=ITERATIONS))
    reference.fit(digits.train.features, digits.train.labels)
    expected = reference.score(digits.test.features, digits.test.labels)
    assert probe.score.strength == 0.1
    assert 0.88 < expected < 0.99
    assert probe.score.test_accuracy == pytest.approx(expected, abs=0.002)
    probabilities = probe.head.probabilities(digits.test.features)
    assert probabilities == pytest.approx(reference.predict_proba(digits.test.features), abs=2e-3)
    assert np.array_equal(probe.test_predictions, probe.head.labels_K[probabilities.argmax(1)])


def test_features_without_information_give_chance(digits: SplitFeatures) -> None:
    random = np.random.default_rng(0)
    noise = SplitFeatures(
        **{
            name: LabelledFeatures(
                features=random.normal(size=(len(part.labels), 8)).astype(np.float32), labels=part.labels
            )
            for name, part in vars(digits).items()
        }
    )
    assert fit_probe(noise, STRENGTHS, ITERATIONS).score.test_accuracy < 0.2
    assert neighbour_score(noise, (1, 5)).test_accuracy < 0.2


def test_a_poisoned_test_split_changes_the_test_accuracy_alone(digits: SplitFeatures) -> None:
    honest, misled = (fit_probe(splits, STRENGTHS, ITERATIONS) for splits in (digits, poisoned(digits)))
    assert misled.score == replace(honest.score, test_accuracy=misled.score.test_accuracy)
    for name, value in vars(honest.head).items():
        assert np.array_equal(value, getattr(misled.head, name))
    assert misled.score.test_accuracy < honest.score.test_accuracy
    near, misled_near = (neighbour_score(splits, (1, 3, 9)) for splits in (digits, poisoned(digits)))
    assert (near.neighbours, near.validation_accuracy) == (misled_near.neighbours, misled_near.validation_accuracy)
    assert misled_near.test_accuracy < near.test_accuracy


def test_few_labels_do_worse_and_draws_depend_on_the_seed(digits: SplitFeatures) -> None:
    few, same, more = (low_data_score(digits, count, 4, STRENGTHS, ITERATIONS, 0) for count in (2, 2, 40))
    assert few == same
    assert few.mean < more.mean < fit_probe(digits, STRENGTHS, ITERATIONS).score.test_accuracy + 0.02
    assert few.deviation > more.deviation
    rows = [draw_labels(digits.train.labels, 2, (0, 2, draw)) for draw in range(2)]
    assert not np.array_equal(*rows)
    assert np.array_equal(np.bincount(digits.train.labels[rows[0]]), np.full(10, 2))


def test_neighbours_are_those_of_scikit_learn(digits: SplitFeatures) -> None:
    prepare = make_pipeline(StandardScaler(), Normalizer())
    train = prepare.fit_transform(digits.train.features)
    reference = KNeighborsClassifier(1).fit(train, digits.train.labels)
    test = prepare.transform(digits.test.features)
    score = neighbour_score(digits, (1,))
    assert score.test_accuracy == pytest.approx(reference.score(test, digits.test.labels), abs=0.002)
    distances, _ = reference.kneighbors(test[:50], 5)
    neighbours = nearest(digits.train.features, digits.test.features[:50], 5)
    assert 1 - neighbours.cosines_NK == pytest.approx(distances**2 / 2, abs=1e-4)
    assert neighbour_score(digits, (1, 3, 10_000)).validation_accuracy >= score.validation_accuracy
