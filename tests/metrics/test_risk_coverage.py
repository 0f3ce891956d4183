from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from sklearn_diffuq.metrics import (
    accuracy_at_coverage,
    area_under_risk_coverage_curve,
    augrc,
    risk_coverage_curve,
)


def mean_over_orders(wrong, confidence, summary):
    """Average a summary of the sorted errors over all orders consistent with the confidences."""
    orders = [
        order
        for order in permutations(range(len(wrong)))
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order))
    ]
    return np.mean([summary(wrong[list(order)]) for order in orders], axis=0)


def risks(sorted_wrong):
    return np.cumsum(sorted_wrong) / np.arange(1, len(sorted_wrong) + 1)


def generalised_area(sorted_wrong):
    height = np.concatenate([[0], np.cumsum(sorted_wrong)]) / len(sorted_wrong)
    return sum((height[:-1] + height[1:]) / 2) / len(sorted_wrong)


TIED = [
    (np.array([1, 0, 1, 0, 0, 1]), np.array([0.9, 0.9, 0.9, 0.6, 0.6, 0.5])),
    (np.array([0, 1, 0, 0, 1, 0]), np.array([0.7, 0.7, 0.7, 0.7, 0.7, 0.7])),
    (np.array([0, 1, 1, 0, 1]), np.array([0.5, 0.6, 0.7, 0.8, 0.9])),
]


def as_predictions(wrong, confidence):
    """Two classes whose top label is 0 with the given confidence."""
    return wrong, np.column_stack([confidence, 1 - confidence]), {"labels": [0, 1]}


@pytest.mark.parametrize(("wrong", "confidence"), TIED)
def test_ties_are_averaged_over_all_their_orders(wrong, confidence):
    y, proba, labels = as_predictions(wrong, confidence)
    coverage, risk = risk_coverage_curve(y, proba, **labels)
    expected = mean_over_orders(wrong, confidence, risks)
    assert_allclose(coverage, np.arange(1, len(wrong) + 1) / len(wrong))
    assert_allclose(risk, expected, atol=1e-12)
    aurc = area_under_risk_coverage_curve(y, proba, **labels)
    assert aurc == pytest.approx(expected.mean())
    area = mean_over_orders(wrong, confidence, generalised_area)
    assert augrc(y, proba, **labels) == pytest.approx(area)
    for k in range(1, len(wrong) + 1):
        accuracy = accuracy_at_coverage(y, proba, coverage=k / len(wrong), **labels)
        assert accuracy == pytest.approx(1 - expected[k - 1])


def test_all_tied_scores_the_error_rate_whatever_the_row_order():
    y = np.repeat([1, 0], [100, 100])
    proba = np.tile([0.4, 0.6], (200, 1))
    for labels in (y, y[::-1]):
        assert area_under_risk_coverage_curve(labels, proba) == pytest.approx(0.5)
        assert augrc(labels, proba) == pytest.approx(0.25)


def test_area_without_ties_equals_a_loop(problem):
    y, proba = problem
    order = np.argsort(-proba.max(axis=1))
    wrong = (proba.argmax(axis=1) != y)[order]
    assert area_under_risk_coverage_curve(y, proba) == pytest.approx(risks(wrong).mean())
    assert augrc(y, proba) == pytest.approx(generalised_area(wrong))
    best = accuracy_at_coverage(y, proba, coverage=0.25)
    assert best == pytest.approx(1 - wrong[:750].mean())


def test_augrc_is_the_closed_form_of_its_paper(problem):
    y, proba = problem
    coarse = np.round(proba.max(axis=1), 1)  # ties
    right = proba.argmax(axis=1) == y
    accuracy, auroc = right.mean(), roc_auc_score(right, coarse)
    closed = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert augrc(y, proba, confidence=coarse) == pytest.approx(closed, abs=1e-12)


def test_ranking_by_a_given_confidence(problem):
    y, proba = problem
    aurc = area_under_risk_coverage_curve
    default = aurc(y, proba)
    top = proba.max(axis=1)
    assert aurc(y, proba, confidence=np.log(top)) == pytest.approx(default)
    right = proba.argmax(axis=1) == y
    assert aurc(y, proba, confidence=right) < default < aurc(y, proba, confidence=-top)
    assert aurc(y, proba, confidence=np.zeros(len(y))) == pytest.approx(1 - right.mean())


def test_full_coverage_is_the_accuracy(problem):
    y, proba = problem
    accuracy = (proba.argmax(axis=1) == y).mean()
    assert accuracy_at_coverage(y, proba, coverage=1.0) == pytest.approx(accuracy)
    _, risk = risk_coverage_curve(y, proba)
    assert risk[-1] == pytest.approx(1 - accuracy)


def test_number_answered_is_not_raised_by_rounding():
    # 0.55 * 100 == 55.00000000000001
    proba = np.column_stack([np.linspace(0.99, 0.51, 100), np.linspace(0.01, 0.49, 100)])
    y = (np.arange(100) >= 55).astype(int)
    assert accuracy_at_coverage(y, proba, coverage=0.55) == 1
    assert accuracy_at_coverage(y, proba, coverage=0.551) == pytest.approx(55 / 56)
    assert accuracy_at_coverage(y, proba, coverage=1e-12) == 1


def test_binary_column_and_string_labels(binary_problem):
    y, p = binary_problem
    names = np.where(y == 1, "yes", "no")
    columns = np.column_stack([1 - p, p])
    for metric in (area_under_risk_coverage_curve, augrc, accuracy_at_coverage):
        assert metric(names, p) == metric(y, columns)


@pytest.mark.parametrize(
    ("confidence", "message"),
    [([0.1, 0.2], "2 values"), ([0.1, np.nan, 0.3], "NaN")],
)
def test_bad_confidence_is_refused(confidence, message):
    with pytest.raises(ValueError, match=message):
        augrc([0, 1, 1], [0.2, 0.3, 0.9], confidence=confidence)


@pytest.mark.parametrize("coverage", [0, -0.1, 1.1])
def test_bad_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match="'coverage' parameter of accuracy_at_coverage"):
        accuracy_at_coverage([0, 1], [0.2, 0.9], coverage=coverage)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=25), st.data())
def test_bounded_and_blind_to_row_order(rows, data):
    wrong, level = np.array(rows).T
    y, proba, labels = as_predictions(wrong.astype(int), 0.5 + level / 10)
    order = np.array(data.draw(st.permutations(range(len(y)))))
    coverage, risk = risk_coverage_curve(y, proba, **labels)
    assert_array_equal(risk, risk_coverage_curve(y[order], proba[order], **labels)[1])
    assert (risk >= 0).all()
    assert (risk <= 1).all()
    # At p = 0.5 the first column wins, so the errors are always those of `wrong`.
    assert risk[-1] == pytest.approx(wrong.mean())
    assert coverage[-1] == 1
    # No ranking beats the oracle.
    oracle = augrc(y, proba, confidence=-wrong, **labels)
    assert wrong.mean() ** 2 / 2 == pytest.approx(oracle)
    assert oracle - 1e-12 <= augrc(y, proba, **labels) <= 0.5
