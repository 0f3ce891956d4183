import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_diffuq.metrics._probabilities import check_weights, encode_labels, top_label

P3 = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]])


@pytest.mark.parametrize(
    "y",
    [
        [0, 1, 2, 1],
        [1, 2, 3, 2],
        [-1, 0, 1, 0],
        [10, 20, 30, 20],
        [0.5, 1.5, 2.5, 1.5],
        ["a", "b", "c", "b"],
        np.array(["a", "b", "c", "b"], dtype=object),
        pd.Series(["a", "b", "c", "b"], index=[7, 3, 11, 0]),
        pd.Series([1, 2, 3, 2], index=[7, 3, 11, 0], dtype="category"),
        np.array([[1], [2], [3], [2]]),
    ],
    ids=lambda y: f"{type(y).__name__}-{np.asarray(y).dtype}-{np.asarray(y).flat[0]}",
)
def test_any_label_type_becomes_the_column_of_its_rank(y):
    codes, proba, _ = encode_labels(y, P3)
    assert_array_equal(codes, [0, 1, 2, 1])
    assert_array_equal(proba, P3)


def test_labels_give_the_order_of_the_columns():
    codes, _, labels = encode_labels(["a", "b", "c", "b"], P3, labels=np.array(["c", "a", "b"]))
    assert_array_equal(codes, [1, 2, 0, 2])
    assert labels == ["c", "a", "b"]


def test_labels_name_classes_that_y_lacks():
    codes, _, _ = encode_labels(["b", "b", "b", "b"], P3, labels=["a", "b", "c"])
    assert_array_equal(codes, [1, 1, 1, 1])


@pytest.mark.parametrize(
    ("labels", "pos_label", "positive"),
    [
        (None, None, "yes"),
        (["no", "yes"], None, "yes"),
        (["yes", "no"], None, "yes"),
        (None, "no", "no"),
        (["yes", "no"], "no", "no"),
    ],
)
def test_one_dimensional_probability_is_of_the_greater_or_named_label(labels, pos_label, positive):
    p = np.array([0.25, 0.5, 1.0])
    codes, proba, order = encode_labels(["yes", "no", "yes"], p, labels, pos_label)
    assert order[1] == positive
    assert_array_equal(proba, np.column_stack([1 - p, p]))
    assert_array_equal(np.array(order)[codes], ["yes", "no", "yes"])


def test_accepts_frames_lists_and_booleans():
    frame = pd.DataFrame(P3[:, :2] / P3[:, :2].sum(axis=1, keepdims=True), index=[4, 2, 9, 1])
    codes, proba, labels = encode_labels([True, False, True, True], frame)
    assert_array_equal(codes, [1, 0, 1, 1])
    assert_array_equal(proba, frame.to_numpy())
    assert labels == [False, True]
    assert_array_equal(encode_labels([0, 1, 2, 1], P3.tolist())[1], P3)


@pytest.mark.parametrize("overshoot", [1.0000001, 1.0 + 1e-5])
def test_rounding_above_one_is_clipped(overshoot):
    _, proba, _ = encode_labels([0, 1], [[overshoot, 0.0], [-1e-7, 1.0]])
    assert_array_equal(proba, [[1, 0], [0, 1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_low_precision_softmax_of_many_classes_is_accepted(dtype):
    logits = np.random.default_rng(0).normal(size=(50, 1000))
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    _, proba, _ = encode_labels(np.arange(50), exact.astype(dtype), labels=range(1000))
    assert_allclose(proba.sum(axis=1), 1, atol=2e-5)
    assert_allclose(proba, exact, rtol=0.02, atol=1e-6)


def test_saturated_float32_rows_stay_tied():
    rows = np.float32([[1, 1e-8, 0], [1, 0, 0], [1, 5e-8, 5e-8]])
    _, proba, _ = encode_labels([0, 1, 2], rows)
    assert_array_equal(proba[:, 0], 1.0)


@pytest.mark.parametrize(
    ("y", "proba", "options", "message"),
    [
        ([0, 1, 1, 0], P3, {}, r"3 columns, but there are 2 labels: \[0, 1\]. Pass labels="),
        ([0, 1, 2, 5], P3, {"labels": [0, 1, 2]}, r"y_true holds \[5\], which labels="),
        (["0", "1", "2", "2"], P3, {"labels": [0, 1, 2]}, "in the type that y_true uses"),
        ([0, 1, 2, 1], P3, {"labels": [0, 1, 1]}, "labels must be distinct"),
        ([0, 1, 2, 1], P3, {"pos_label": 7}, "pos_label=7 is not one of"),
        ([0, 1, 2, 1], P3[:3], {}, "inconsistent numbers of samples"),
        (np.eye(3)[[0, 1, 2, 1]], P3, {}, "argmax"),
        ([0, 1, np.nan, 1], P3, {}, "y_true holds NaN"),
        (np.array([0, "a", None, 1], dtype=object), P3, {}, "cannot be sorted"),
        ([0, 1, 2, 1], np.log(P3), {}, "softmax"),
        ([0, 1, 2, 1], P3 * 10, {}, "probabilities in"),
        ([0, 1, 2, 1], P3 * [1, 1, 0.5], {}, "row 2 sums to 0.8"),
        ([0, 1, 2, 1], np.where(P3 == 0.4, np.nan, P3), {}, "y_proba contains NaN"),
        ([0, 1, 2, 1], P3[:, 0], {}, "one-dimensional y_proba is the probability of one of two"),
        ([1, 1, 1, 1], P3[:, 0], {}, "labels="),
        ([], np.empty((0, 3)), {}, "0 sample"),
    ],
)
def test_garbage_is_refused_with_advice(y, proba, options, message):
    with pytest.raises(ValueError, match=message):
        encode_labels(y, proba, **options)


@pytest.mark.parametrize(
    ("weight", "message"),
    [([1, 2], "2 values"), ([1, -1, 1], "non-negative"), ([0, 0, 0], "positive sum")],
)
def test_bad_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weight, 3)


def test_first_column_wins_a_tie():
    confidence, correct = top_label(np.array([0, 1]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    assert_array_equal(confidence, [0.5, 0.5])
    assert_array_equal(correct, [1, 0])
