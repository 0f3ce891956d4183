"""Validating labels and weights, and choosing samples: splits, random subsets, indexing."""

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.utils import _safe_indexing, assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_consistent_length,
    column_or_1d,
)

from sklearn_diffuq._inputs.dataset_rows import DatasetRows, is_dataset, rows_and_labels
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq.exceptions import CalibrationWarning

MIN_NOISE_ROWS = 30  # fewer held-out samples fit a temperature only
SHOWN = 10  # labels that a message names
BLOCK_ROWS = 2**16  # rows of a table that are encoded at once


def check_rows(
    X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None, owner: str = "A classifier"
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Validate labels and weights, and drop rows of weight zero; the wrapped model checks `X`.

    `owner` is what messages name.

    Returns
    -------
    X : as given
    y : ndarray of shape (n,)
    sample_weight : ndarray of shape (n,), float64
        Positive; ones where none are given.
    """
    refuse_sparse(X)
    X, y = rows_and_labels(X, y)
    if hasattr(X, "__array__") and not hasattr(X, "__getitem__"):
        X = np.asarray(X)
    if y is not None and not is_plain_mapping(X):
        check_consistent_length(X, y)
    labels, weight, kept = check_labels(y, sample_weight, owner)
    if len(kept) < _num_samples(y):
        X = safe_indexing(X, kept)
    return X, labels, weight


def check_n_samples(n_samples: Any) -> int:
    """Return a number of draws, which may have been set after `fit`, or refuse it."""
    is_int = isinstance(n_samples, Integral) and not isinstance(n_samples, bool)
    if not is_int or n_samples < 1:
        raise ValueError(f"n_samples must be an int of at least 1, got {n_samples!r}.")
    return int(n_samples)


def held_out_rows(X_calibration: Any, y_calibration: Any, X_val: Any, y_val: Any) -> Any:
    """Return the held-out rows and their labels, whichever names they were given under."""
    for X, y, name in ((X_calibration, y_calibration, "calibration"), (X_val, y_val, "val")):
        has_labels = y is not None or is_dataset(X)
        if (X is None) == has_labels:
            raise ValueError(f"X_{name} and y_{name} belong together: give both, or neither.")
    if X_calibration is not None and X_val is not None:
        raise ValueError("X_val is another name of X_calibration: give one of them.")
    return (X_calibration, y_calibration) if X_val is None else (X_val, y_val)


def positive_rows(y: ArrayLike | None, sample_weight: ArrayLike | None) -> np.ndarray:
    """Return the numbers of the rows that `check_rows` keeps; it checks the arguments."""
    n = 0 if y is None else _num_samples(y)
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight)
    return np.flatnonzero(weight) if weight.shape == (n,) else np.arange(n)


def refuse_sparse(X: Any) -> None:
    """Raise TypeError if `X` is a sparse matrix or array."""
    if issparse(X):
        raise TypeError(
            "Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert "
            "it to a dense array."
        )


def check_labels(
    y: ArrayLike | None, sample_weight: ArrayLike | None, owner: str = "A classifier"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Validate labels and weights.

    Parameters
    ----------
    y : array-like of shape (m,)
    sample_weight : array-like of shape (m,) or None
    owner : str
        Name of the estimator, for error messages.

    Returns
    -------
    y : ndarray of shape (n,)
        Labels of the rows of positive weight.
    sample_weight : ndarray of shape (n,), float64
        Their weights; ones where none are given.
    kept : ndarray of shape (n,)
        Their positions in `y`.
    """
    if y is None:
        raise ValueError(f"{owner} requires y to be passed, but the target y is None.")
    labels: np.ndarray = column_or_1d(_without_missing_marks(y), warn=True)
    if len(labels) == 0:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    weight = _check_sample_weight(
        sample_weight, np.empty((len(labels), 0)), dtype=np.float64, ensure_non_negative=True
    )
    kept = np.flatnonzero(weight)
    if len(kept) == 0:
        raise ValueError("All sample weights are zero: at least one weight has to be positive.")
    labels, weight = labels[kept], weight[kept]
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"{owner} needs rows of at least two classes, but all {len(kept)} sample(s) with a "
            f"positive weight have one class, {labels[0]!r}."
        )
    return labels, weight, kept


def _without_missing_marks(y: Any) -> Any:
    """Return nullable integers and booleans of pandas as such: scikit-learn makes them floats."""
    dtype: Any = getattr(y, "dtype", None)
    is_nullable = hasattr(dtype, "numpy_dtype") and hasattr(y, "isna")
    if is_nullable and dtype.kind in "bui" and not y.isna().any():
        return y.to_numpy(dtype=dtype.numpy_dtype)
    return y


def class_indices(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the position of each label among the classes.

    Parameters
    ----------
    y : ndarray of shape (n,)
    classes : ndarray of shape (n_classes,)
        Distinct labels, in any order.

    Returns
    -------
    indices : ndarray of shape (n,)
        ``classes[indices]`` is `y`.

    Raises
    ------
    ValueError
        If a label is not among the classes.
    """
    unseen = np.setdiff1d(y, classes)
    if len(unseen):
        raise ValueError(
            f"The labels {unseen.tolist()} are unknown to the model, whose classes are "
            f"{classes.tolist()}. Give rows of these classes, or a model that was trained with all "
            "classes."
        )
    order = np.argsort(classes)
    return order[np.searchsorted(classes, y, sorter=order)]


def is_plain_mapping(X: Any) -> bool:
    """Tell whether `X` is a dict of columns, which scikit-learn cannot index by row."""
    return isinstance(X, Mapping) and not hasattr(X, "shape")


def safe_indexing(X: Any, rows: np.ndarray) -> Any:
    """Return rows of `X` of any kind; raise ValueError for a plain mapping."""
    if is_plain_mapping(X):
        raise ValueError(
            f"X is a {type(X).__name__}, of which rows cannot be taken, but fit has to split it. "
            "Give the raw text with a tokenizer as preprocessor, a skorch.helper.SliceDict, or "
            "X_calibration and y_calibration."
        )
    return X[rows] if isinstance(X, DatasetRows) else _safe_indexing(X, rows)


def row_blocks(X: Any) -> Iterator[tuple[int, Any]]:
    """Yield ``(start, part)``: a long table in parts that can be encoded one after the other."""
    rows = X if isinstance(X, np.ndarray) else getattr(X, "iloc", None)
    if rows is None or X.ndim != 2 or len(X) <= BLOCK_ROWS:
        yield 0, X
        return
    for start in range(0, len(X), BLOCK_ROWS):
        yield start, rows[start : start + BLOCK_ROWS]


def stratified_split(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of a training and a held-out part, drawn class by class.

    The last row of a class is never held out.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for value in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == value))
        parts.append(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    held = np.sort(np.concatenate(parts))
    return np.setdiff1d(np.arange(len(y)), held), held


def calibration_split(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a `stratified_split` whose held-out part is not empty; warn where it is small."""
    train, held = stratified_split(y, fraction, seed)
    if len(held) == 0:
        raise ValueError(
            f"No rows are left to hold out for calibration: validation_fraction={fraction} of "
            f"{len(y)} samples rounds to none in every class. Give more rows, a larger "
            "validation_fraction, or X_calibration and y_calibration."
        )
    way_out = ", a larger validation_fraction, or X_calibration and y_calibration"
    warn_of_few_rows(y[held], np.unique(y), way_out)
    return train, held


def warn_of_few_rows(y_held: np.ndarray, classes: np.ndarray, way_out: str) -> None:
    """Say what few held-out rows, or none of some class, leave without calibration."""
    said = []
    if len(y_held) < MIN_NOISE_ROWS:
        said.append(
            f"Only {len(y_held)} rows are held out for calibration; fewer than {MIN_NOISE_ROWS} "
            "say little about the temperature and are too few for noise, and for a temperature "
            "that grows with the distance to the training data: neither is calibrated."
        )
    missing = np.setdiff1d(classes, y_held).tolist()
    if missing:
        dots = ", .." if len(missing) > SHOWN else ""
        said.append(
            f"No row of the class(es) {', '.join(map(repr, missing[:SHOWN]))}{dots} is held out: "
            "their probabilities are calibrated by rows of other classes alone."
        )
    if said:
        warn_user(f"{' '.join(said)} Give more rows{way_out}.", CalibrationWarning)


def random_rows(n: int, n_rows: int, seed: int, *, shuffle: bool = False) -> np.ndarray:
    """Return the numbers of at most `n_rows` of n rows, drawn at random.

    Data are often sorted by class. The numbers are in order; with `shuffle` they are not, so that
    the first of them are a random sample too.
    """
    rows = np.random.default_rng(seed).permutation(n)[:n_rows]
    return rows if shuffle else np.sort(rows)
