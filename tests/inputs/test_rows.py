"""Labels, weights and row numbers: validation, splits, random subsets."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.exceptions import DataConversionWarning

from sklearn_diffuq._inputs.rows import (
    calibration_split,
    check_labels,
    check_rows,
    class_indices,
    random_rows,
    safe_indexing,
    stratified_split,
    warn_of_few_rows,
)
from sklearn_diffuq.exceptions import CalibrationWarning

TWO = np.array([0, 1] * 10)


# check_rows -----------------------------------------------------------------------------------


def test_rows_come_back_with_unit_weights():
    X = np.arange(40.0).reshape(20, 2)
    found, y, weight = check_rows(X, TWO.tolist(), None)
    assert found is X
    np.testing.assert_array_equal(y, TWO)
    np.testing.assert_array_equal(weight, np.ones(20))


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, lambda X: [str(x) for x in X]])
def test_rows_without_weight_are_dropped(kind):
    X = kind(np.arange(40).reshape(20, 2))
    weight = np.where(np.arange(20) % 3 == 0, 0.0, 2.0)
    kept, y, kept_weight = check_rows(X, TWO, weight)
    expected = np.flatnonzero(weight)
    assert len(kept) == len(expected)
    np.testing.assert_array_equal(y, TWO[expected])
    np.testing.assert_array_equal(kept_weight, 2.0)
    if isinstance(X, list):
        assert kept == [X[i] for i in expected]


def test_a_column_of_labels_is_flattened_with_a_warning():
    with pytest.warns(DataConversionWarning):
        _, y, _ = check_rows(np.zeros((20, 1)), TWO[:, None], None)
    assert y.shape == (20,)


@pytest.mark.parametrize(
    ("X", "y", "weight", "error", "message"),
    [
        (sparse.eye(20).tocsr(), TWO, None, TypeError, "dense data is required"),
        (
            np.zeros((20, 1)),
            np.zeros(20),
            None,
            ValueError,
            r"at least two classes, but all 20 sample\(s\).*0\.0",
        ),
        (np.zeros((20, 1)), TWO, TWO.astype(float), ValueError, "at least two classes"),
        (np.zeros((20, 1)), TWO, np.zeros(20), ValueError, "weights .*zero"),
        (np.zeros((20, 1)), TWO, -np.ones(20), ValueError, "Negative"),
        (np.zeros((0, 1)), np.zeros(0), None, ValueError, r"0 sample\(s\)"),
        (np.zeros((20, 1)), None, None, ValueError, "requires y"),
        (np.zeros((19, 1)), TWO, None, ValueError, "inconsistent numbers of samples"),
        (np.zeros((20, 1)), np.linspace(0, 1, 20), None, ValueError, "label type"),
        (np.zeros((20, 1)), np.where(TWO == 0, np.nan, 1.0), None, ValueError, "NaN"),
        (np.zeros((20, 1)), np.where(TWO == 0, np.inf, 1.0), None, ValueError, "infinity"),
    ],
)
def test_unusable_rows_are_refused(X, y, weight, error, message):
    with pytest.raises(error, match=message):
        check_rows(X, y, weight)


def test_labels_without_weight_do_not_count():
    y, weight, kept = check_labels(["c", "a", "b", "c"], [1, 2, 0, 3])
    assert y.tolist() == ["c", "a", "c"]
    assert weight.tolist() == [1.0, 2.0, 3.0]
    assert kept.tolist() == [0, 1, 3]


@pytest.mark.parametrize("y", [None, [1, 1]])
def test_messages_about_labels_name_who_asks(y):
    with pytest.raises(ValueError, match="^Somebody "):
        check_labels(y, None, "Somebody")


def test_a_mapping_is_kept_whole_but_not_split():
    X = {"input_ids": np.ones((20, 4), dtype=int)}
    assert check_rows(X, TWO, None)[0] is X
    with pytest.raises(ValueError, match="X is a dict.*SliceDict"):
        safe_indexing(X, [0, 1])
    with pytest.raises(ValueError, match="X is a dict"):
        check_rows(X, TWO, np.arange(20.0))


# stratified_split -----------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 100),
)
def test_split_is_complete_disjoint_and_stratified(counts, fraction, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    expected = [min(round(fraction * n), n - 1) for n in counts]
    train, held = stratified_split(y, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(len(y)))
    assert np.bincount(y[held], minlength=len(counts)).tolist() == expected
    assert set(y[train]) == set(y)


def test_split_follows_the_seed():
    first, again, other = (stratified_split(np.repeat([0, 1], 100), 0.3, s)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_small_held_out_part_is_said():
    with pytest.warns(CalibrationWarning, match="Only 4 rows are held out.*validation_fraction"):
        found = calibration_split(TWO, 0.2, 0)
    for part, expected in zip(found, stratified_split(TWO, 0.2, 0), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_an_empty_held_out_part_is_refused():
    with pytest.raises(ValueError, match="No rows are left to hold out.*0.01 of 20 samples"):
        calibration_split(TWO, 0.01, 0)


def test_held_out_rows_come_from_every_class_in_proportion():
    y = np.repeat([0, 1, 2], [700, 200, 100])
    assert np.bincount(y[stratified_split(y, 0.1, 0)[1]]).tolist() == [70, 20, 10]
    assert len(stratified_split(y, 0, 0)[1]) == 0


# random_rows ----------------------------------------------------------------------------------


def test_random_rows_are_a_fair_sample_in_order():
    found = random_rows(1000, 200, seed=0).tolist()
    assert len(set(found)) == 200
    assert found == sorted(found)
    assert 400 < np.mean(found) < 600
    assert random_rows(5, 200, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_shuffled_random_rows_are_the_same_rows():
    kept = random_rows(1000, 200, seed=0).tolist()
    shuffled = random_rows(1000, 200, seed=0, shuffle=True).tolist()
    assert shuffled != kept
    assert sorted(shuffled) == kept
    assert 400 < np.mean(shuffled[:60]) < 600


# class_indices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "y"),
    [
        (["b", "c", "a"], ["a", "b", "a"]),
        ([2, 0, 1], [1, 1, 2]),
        ([False, True], [True]),
        (["a", "b"], ["a", "b"]),
        ([0.5, -1.0], [-1.0, 0.5]),
    ],
)
def test_labels_get_the_position_of_their_class(classes, y):
    found = class_indices(np.array(y), np.array(classes))
    assert found.tolist() == [classes.index(value) for value in y]


@pytest.mark.parametrize("unknown", ["A", "aa", "z"])
def test_unknown_labels_are_named(unknown):
    with pytest.raises(ValueError, match=rf"\['{unknown}'\] are unknown.*\['b', 'a'\]"):
        class_indices(np.array(["a", unknown]), np.array(["b", "a"]))


def test_classes_that_are_not_held_out_are_named():
    y = np.r_[np.zeros(60), np.ones(60), 2, 3, 3].astype(int)
    with pytest.warns(CalibrationWarning, match=r"No row of the class\(es\) 2, 3 is held out"):
        _, held = calibration_split(y, 0.25, 0)
    assert set(y[held]) == {0, 1}


@pytest.mark.parametrize("n", [2, 19, 29])
def test_what_few_held_out_rows_leave_uncalibrated_is_said(n):
    with pytest.warns(CalibrationWarning, match=rf"Only {n} rows.*noise.*neither is calibrated"):
        warn_of_few_rows(np.arange(n) % 2, np.arange(2), "")


def test_thirty_rows_of_all_classes_are_enough():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few_rows(np.arange(30) % 2, np.arange(2), "")
