from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from sklearn_diffuq.metrics import (
    expected_calibration_error,
    signed_calibration_gap,
)


def slow_error(confidence, outcome, n_bins, strategy, norm):
    """Calibration error by a loop over bins; equal-mass bins for confidences without ties."""
    if strategy == "uniform":
        edges = np.arange(n_bins + 1) / n_bins
        bins = [(confidence >= a) & (confidence < b) for a, b in pairwise(edges)]
        bins[-1] |= confidence == 1
    else:
        rank = np.argsort(np.argsort(confidence))
        bins = [np.floor((rank + 0.5) * n_bins / len(rank)) == b for b in range(n_bins)]
    bins = [rows for rows in bins if rows.any()]
    gaps = np.array([abs(confidence[rows].mean() - outcome[rows].mean()) for rows in bins])
    shares = np.array([rows.mean() for rows in bins])
    if norm == "max":
        return max(gaps)
    return sum(shares * gaps) if norm == "l1" else np.sqrt(sum(shares * gaps * gaps))


def binary_views(y, proba, kind):
    if kind == "top-label":
        return [(proba.max(axis=1), proba.argmax(axis=1) == y)]
    if kind == "positive":
        return [(proba[:, 1], y == 1)]
    return [(proba[:, k], y == k) for k in range(proba.shape[1])]


@pytest.mark.parametrize("kind", ["top-label", "classwise", "positive"])
@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("n_bins", [1, 7, 15, 40])
def test_error_equals_a_loop_over_bins(problem, kind, strategy, norm, n_bins):
    y, proba = problem
    expected = np.mean(
        [slow_error(c, o, n_bins, strategy, norm) for c, o in binary_views(y, proba, kind)]
    )
    options = {"kind": kind, "strategy": strategy, "norm": norm, "n_bins": n_bins, "pos_label": 1}
    assert_allclose(expected_calibration_error(y, proba, **options), expected, atol=1e-12)


def test_defaults_are_top_label_fifteen_uniform_bins(problem, binary_problem):
    y, proba = problem
    expected = slow_error(*binary_views(y, proba, "top-label")[0], 15, "uniform", "l1")
    assert_allclose(expected_calibration_error(y, proba), expected, atol=1e-12)
    y, p = binary_problem
    columns = np.column_stack([1 - p, p])
    expected = slow_error(*binary_views(y, columns, "top-label")[0], 15, "uniform", "l1")
    assert_allclose(expected_calibration_error(y, p), expected, atol=1e-12)


def test_binary_one_column_equals_two_and_kinds_differ(binary_problem):
    y, p = binary_problem
    columns = np.column_stack([1 - p, p])
    values = {}
    for kind in ["top-label", "positive", "classwise"]:
        values[kind] = expected_calibration_error(y, p, kind=kind)
        assert values[kind] == pytest.approx(expected_calibration_error(y, columns, kind=kind))
    assert abs(values["top-label"] - values["positive"]) > 1e-4
    named = np.where(y == 1, "ham", "spam")
    flipped = expected_calibration_error(named, p, kind="positive", pos_label="ham")
    assert flipped == pytest.approx(values["positive"])


def test_positive_kind_of_many_classes_needs_a_label(problem):
    with pytest.raises(ValueError, match="needs pos_label="):
        expected_calibration_error(*problem, kind="positive")


@pytest.mark.parametrize(
    ("option", "value"),
    [("kind", "toplabel"), ("strategy", "equal"), ("norm", "l3"), ("n_bins", 0)],
)
def test_unknown_options_are_refused(problem, option, value):
    with pytest.raises(ValueError, match=f"'{option}' parameter of expected_calibration_error"):
        expected_calibration_error(*problem, **{option: value})


def test_confidence_one_shares_the_last_bin():
    # An extra bin for 1.0 would give (0.05 + 1) / 2 = 0.525.
    assert expected_calibration_error([1, 0], [0.95, 1.0], n_bins=10) == pytest.approx(0.475)


def test_confidence_zero_is_counted():
    error = expected_calibration_error([1, 1, 0, 0], [0.0, 0.0, 0.0, 1.0], kind="positive")
    assert error == pytest.approx(0.75 * (2 / 3) + 0.25 * 1)


def test_one_value_over_one_changes_nothing(problem):
    y, proba = problem
    touched = proba.copy()
    touched[0] = [1.0000001, 0, 0, 0]
    clean = touched.clip(0, 1)
    error = expected_calibration_error(y, touched)
    assert error == pytest.approx(expected_calibration_error(y, clean), abs=1e-9)


def test_two_labels_left_of_four(problem):
    y, proba = problem
    rows = y < 2
    error = expected_calibration_error(y[rows], proba[rows], labels=range(4))
    views = binary_views(y[rows], proba[rows], "top-label")[0]
    assert error == pytest.approx(slow_error(*views, 15, "uniform", "l1"))


def test_classes_absent_from_y_still_count_in_classwise():
    proba = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    error = expected_calibration_error([0, 1], proba, labels=[0, 1, 2], kind="classwise")
    assert error == pytest.approx((0.1 + 0.2 + 0.1) / 3)


def test_tied_confidences_share_an_equal_mass_bin():
    y = np.repeat([1, 0], [100, 100])
    p = np.full(200, 0.6)
    assert expected_calibration_error(y, p, strategy="quantile") == pytest.approx(0.1)


def test_small_and_degenerate_samples():
    assert expected_calibration_error([1], [0.7], labels=[0, 1]) == pytest.approx(0.3)
    assert expected_calibration_error(["a"], [[0.2, 0.8]], labels=["a", "b"]) == pytest.approx(0.8)
    assert expected_calibration_error([3, 3], [[1.0], [1.0]]) == 0
    few = expected_calibration_error([0, 1, 1], [0.1, 0.7, 0.2], strategy="quantile")
    assert few == pytest.approx((0.1 + 0.3 + 0.8) / 3)
    assert expected_calibration_error([0, 1, 1], [0.0, 1.0, 1.0]) == 0
    assert expected_calibration_error([1, 0, 0], [0.0, 1.0, 1.0]) == 1


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_integer_weights_are_repetitions(strategy):
    rng = np.random.default_rng(0)
    y, proba = rng.integers(0, 3, 60), rng.dirichlet([1, 1, 1], 60)
    times = rng.integers(0, 4, 60)
    weighted = expected_calibration_error(y, proba, strategy=strategy, sample_weight=times)
    y2, proba2 = np.repeat(y, times), np.repeat(proba, times, axis=0)
    assert weighted == pytest.approx(expected_calibration_error(y2, proba2, strategy=strategy))
    gap = signed_calibration_gap(y, proba, sample_weight=times)
    assert gap == pytest.approx(signed_calibration_gap(y2, proba2))


def test_signed_gap_is_mean_confidence_minus_accuracy(problem):
    y, proba = problem
    expected = proba.max(axis=1).mean() - (proba.argmax(axis=1) == y).mean()
    assert signed_calibration_gap(y, proba) == pytest.approx(expected)
    assert expected > 0.05
    one_bin = expected_calibration_error(y, proba, n_bins=1)
    assert one_bin == pytest.approx(expected)
    assert signed_calibration_gap([1, 1], [0.6, 0.6], labels=[0, 1]) == pytest.approx(-0.4)


@st.composite
def forecasts(draw):
    """Forecasts on a coarse grid, with many ties, zeros and ones, and a permutation of them."""
    n, n_classes = draw(st.integers(1, 30)), draw(st.integers(2, 4))
    parts = st.lists(st.integers(0, 4), min_size=n_classes, max_size=n_classes)
    rows = np.array(draw(st.lists(parts, min_size=n, max_size=n)), dtype=float)
    rows[rows.sum(axis=1) == 0] = 1
    y = draw(st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n))
    order = draw(st.permutations(range(n)))
    return np.array(y), rows / rows.sum(axis=1, keepdims=True), np.array(order)


@given(forecasts(), st.sampled_from(["uniform", "quantile"]), st.integers(1, 20))
def test_errors_are_bounded_ordered_and_blind_to_row_order(drawn, strategy, n_bins):
    y, proba, order = drawn
    options = {"labels": range(proba.shape[1]), "strategy": strategy, "n_bins": n_bins}
    for kind in ["top-label", "classwise"]:
        l1, l2, largest = (
            expected_calibration_error(y, proba, kind=kind, norm=norm, **options)
            for norm in ["l1", "l2", "max"]
        )
        assert 0 <= l1 <= l2 + 1e-12
        assert l2 <= largest + 1e-12
        assert largest <= 1
        assert l1 == expected_calibration_error(y[order], proba[order], kind=kind, **options)
    gap = signed_calibration_gap(y, proba, labels=options["labels"])
    assert gap == signed_calibration_gap(y[order], proba[order], labels=options["labels"])
    assert abs(gap) <= expected_calibration_error(y, proba, **options) + 1e-12


@given(forecasts())
def test_column_order_and_names_do_not_matter(drawn):
    y, proba, _ = drawn
    proba = proba + 1e-4 * np.arange(proba.shape[1])  # no tie for the top label
    proba /= proba.sum(axis=1, keepdims=True)
    names = np.array(["d", "b", "a", "c"])[: proba.shape[1]]
    swap = np.argsort(names)
    for kind in ["top-label", "classwise"]:
        first = expected_calibration_error(y, proba, labels=range(len(names)), kind=kind)
        second = expected_calibration_error(names[y], proba[:, swap], labels=names[swap], kind=kind)
        assert first == pytest.approx(second, abs=1e-12)


@pytest.mark.parametrize("n_bins", [5, 15])
def test_a_confidence_on_an_edge_belongs_to_the_bin_it_opens(n_bins):
    for edge in range(1, n_bins):
        outcome = np.array([1, 1])
        p = np.array([edge / n_bins, (edge + 0.5) / n_bins])  # one bin: their gaps add up
        proba = np.column_stack([1 - p, p])
        if p[0] >= 0.5:
            found = expected_calibration_error(
                outcome, proba, n_bins=n_bins, norm="max", labels=[0, 1]
            )
            assert found == pytest.approx(1 - p.mean())
