"""Validating labels and weights, and choosing samples: splits, random subsets, indexing."""

import warnings
from collections.abc import Mapping

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import _safe_indexing, assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, column_or_1d

from sklearn_diffuq.exceptions import CalibrationWarning

MIN_CALIBRATION_ROWS = 20


def check_rows(X, y, sample_weight):
    """Validate labels and weights, drop rows of weight zero, and leave `X` to the wrapped model."""
    if y is None:
        raise ValueError("A classifier requires y to be passed, but the target y is None.")
    y = column_or_1d(y, warn=True)
    if issparse(X):
        raise TypeError(
            "Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert "
            "it to a dense array."
        )
    if hasattr(X, "__array__") and not hasattr(X, "__getitem__"):
        X = np.asarray(X)
    if not is_plain_mapping(X):
        check_consistent_length(X, y)
    if len(y) == 0:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    if sample_weight is None:
        weight = np.ones(len(y))
    else:
        weight = _check_sample_weight(
            sample_weight, np.empty((len(y), 0)), ensure_non_negative=True
        )
        if not weight.any():
            raise ValueError("All sample weights are zero: at least one weight has to be positive.")
        kept = np.flatnonzero(weight)
        if len(kept) < len(y):
            X, y, weight = safe_indexing(X, kept), y[kept], weight[kept]
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"The labels hold one class only, {y[0]!r} ({len(y)} sample(s)); a classifier needs at "
            "least two classes."
        )
    return X, y, weight


def is_plain_mapping(X):
    """Tell whether `X` is a dict of columns that scikit-learn cannot take rows of."""
    return isinstance(X, Mapping) and not hasattr(X, "shape")


def safe_indexing(X, rows):
    """Return rows of `X`, whatever its kind, or say why there are none to be had."""
    if is_plain_mapping(X):
        raise ValueError(
            f"X is a {type(X).__name__}, of which rows cannot be taken, but fit has to split it. "
            "Give the raw text with a tokenizer as preprocessor, a skorch.helper.SliceDict, or "
            "X_calibration and y_calibration."
        )
    return _safe_indexing(X, rows)


def stratified_split(y, fraction, seed):
    """Return the row numbers of a training and a held-out part, drawn class by class.

    A class of one row goes to the training part.
    """
    rng = np.random.default_rng(seed)
    held = []
    for value in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == value))
        held.append(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    held = np.sort(np.concatenate(held))
    if len(held) == 0:
        raise ValueError(
            f"No rows are left to hold out for calibration: validation_fraction={fraction} of "
            f"{len(y)} samples rounds to none in every class. Give more rows, a larger "
            "validation_fraction, or X_calibration and y_calibration."
        )
    if len(held) < MIN_CALIBRATION_ROWS:
        warnings.warn(
            f"Only {len(held)} rows are held out for calibration; fewer than "
            f"{MIN_CALIBRATION_ROWS} say little about temperature and noise. Give more rows, a "
            "larger validation_fraction, or X_calibration and y_calibration.",
            CalibrationWarning,
            stacklevel=3,
        )
    return np.setdiff1d(np.arange(len(y)), held), held


def check_labels(owner, y, sample_weight):
    """Return the sorted classes, class indices, weights, and the rows with a positive weight."""
    if y is None:
        raise ValueError(
            f"{type(owner).__name__} requires y to be passed, but the target y is None."
        )
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    weight = _check_sample_weight(
        sample_weight, np.empty((len(y), 0)), dtype=np.float64, ensure_non_negative=True
    )
    kept = np.flatnonzero(weight)
    if len(kept) == 0:
        raise ValueError("Sample weights are all zero: at least one must be positive.")
    classes, target = np.unique(y[kept], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"{type(owner).__name__} needs rows of at least two classes, but all {len(kept)} "
            f"sample(s) with a positive weight have one class, {classes[0]!r}."
        )
    return classes, target, weight[kept] / weight[kept].mean(), kept


def held_out_rows(target, fraction, rng):
    """Return about `fraction` of the rows, from every class; the last row of a class never."""
    if fraction == 0:
        return np.empty(0, dtype=np.intp)
    order = rng.permutation(len(target))
    order = order[np.argsort(target[order], kind="stable")]
    step = round(1 / fraction)
    held = order[step // 2 :: step]
    return held[np.bincount(target)[target[held]] > 1]


def _random_order(labelled, n_rows, seed):
    """Return at most `n_rows` random rows in random order: the first of them are a fair sample."""
    rows = np.random.default_rng(seed).permutation(len(labelled))[:n_rows]
    return labelled.take(rows)


def random_rows(labelled, n_rows, seed):
    """Return at most `n_rows` rows, drawn at random: data are often sorted by class."""
    rows = np.random.default_rng(seed).permutation(len(labelled))[:n_rows]
    return labelled.take(np.sort(rows))
