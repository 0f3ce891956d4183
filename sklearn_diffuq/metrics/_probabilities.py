"""Validation shared by all metrics: labels, probabilities and sample weights."""

import numpy as np
from sklearn.utils import check_array, check_consistent_length, column_or_1d

# Rounding error that float32 and half precision models leave in the probabilities of a sample.
_TOLERANCE = 1e-3
# Only errors beyond float32 rounding are rescaled: rescaling splits ties at confidence 1.
_RESCALE = 1e-5


def check_probabilities(proba):
    """Return `proba` (n, n_classes) as float64 with rows in [0, 1] that sum to one, or raise."""
    tolerance = _TOLERANCE
    if np.issubdtype(proba.dtype, np.floating):
        tolerance = max(tolerance, np.sqrt(np.finfo(proba.dtype).eps))
    proba = proba.astype(np.float64)
    low, high = proba.min(), proba.max()
    if low < -tolerance or high > 1 + tolerance:
        raise ValueError(
            f"y_proba must hold probabilities in [0, 1], got values from {low:.4g} to {high:.4g}."
            " If these are logits or decision values, pass scipy.special.softmax(logits, axis=1)."
        )
    proba = np.clip(proba, 0, 1)
    total = proba.sum(axis=1)
    error = np.abs(total - 1)
    worst = int(error.argmax())
    if error[worst] > tolerance:
        raise ValueError(
            f"Each row of y_proba must sum to 1, but row {worst} sums to {total[worst]:.4g}."
            " Normalise the rows, or pass the scores of one label as a one-dimensional y_proba."
        )
    off = error > _RESCALE
    proba[off] /= total[off, None]
    return proba


def encode_labels(y_true, y_proba, labels=None, pos_label=None):
    """Encode labels as the columns of `y_proba`, and validate the probabilities.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Labels of any sortable type.
    y_proba : array-like of shape (n, n_classes) or (n,)
        If one-dimensional, the probability of `pos_label` in a problem with two labels.
    labels : array-like of shape (n_classes,), default=None
        Label of each column; if None, the sorted distinct values of `y_true`.
    pos_label : label, default=None
        The label of a one-dimensional `y_proba`; if None, the greater one.

    Returns
    -------
    codes : ndarray of shape (n,)
        Column of the true label.
    proba : ndarray of shape (n, n_classes)
    labels : list
        Label of each column of `proba`.
    """
    y_true = _label_vector(y_true)
    proba = check_array(
        y_proba, dtype="numeric", ensure_2d=False, ensure_min_samples=1, input_name="y_proba"
    )
    check_consistent_length(y_true, proba)
    present, codes = _distinct(y_true)
    labels = present if labels is None else _check_columns(labels)
    if pos_label is not None and pos_label not in labels:
        raise ValueError(
            f"pos_label={pos_label!r} is not one of the labels {_show(labels)}. If it is only"
            " absent from y_true, pass labels=."
        )
    if proba.ndim == 1:
        labels, proba = _two_columns(labels, proba, pos_label)
    if len(labels) != proba.shape[1]:
        raise ValueError(
            f"y_proba has {proba.shape[1]} columns, but there are {len(labels)} labels:"
            f" {_show(labels)}. Pass labels=, the label of each column in order; for a"
            " scikit-learn classifier that is its classes_."
        )
    column = {label: k for k, label in enumerate(labels)}
    missing = [label for label in present if label not in column]
    if missing:
        raise ValueError(
            f"y_true holds {_show(missing)}, which labels={_show(labels)} does not contain."
            " labels= must name every column of y_proba, in the type that y_true uses."
        )
    return np.array([column[label] for label in present])[codes], check_probabilities(proba), labels


def check_weights(sample_weight, n):
    """Return `sample_weight` as a float64 vector of length `n`; None means ones."""
    if sample_weight is None:
        return np.ones(n)
    weight = column_or_1d(sample_weight).astype(np.float64)
    if len(weight) != n:
        raise ValueError(f"sample_weight has {len(weight)} values, but there are {n} samples.")
    if not np.isfinite(weight).all() or weight.min() < 0 or weight.sum() == 0:
        raise ValueError(
            "sample_weight must be finite and non-negative, with a positive sum; got values from"
            f" {weight.min():.4g} to {weight.max():.4g}."
        )
    return weight


def top_label(codes, proba):
    """Return confidence and correctness (0.0 or 1.0) of the most probable label, both (n,).

    The first column wins a tie, as in `numpy.argmax`.
    """
    return proba.max(axis=1), (proba.argmax(axis=1) == codes).astype(np.float64)


def _label_vector(y_true):
    shape = np.shape(y_true)
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y_true must hold one label per sample, got shape {shape}."
            " For one-hot labels pass y_true.argmax(axis=1)."
        )
    return column_or_1d(y_true)


def _distinct(y_true):
    try:
        values, codes = np.unique(y_true, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"y_true mixes labels that cannot be sorted: {error}.") from error
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError("y_true holds NaN or infinity; drop or fill these samples first.")
    return values.tolist(), codes


def _check_columns(labels):
    labels = column_or_1d(labels).tolist()
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels must be distinct, got {_show(labels)}.")
    return labels


def _two_columns(labels, proba, pos_label):
    if len(labels) != 2:
        raise ValueError(
            "A one-dimensional y_proba is the probability of one of two labels, but there are"
            f" {len(labels)}: {_show(labels)}. Pass all columns of predict_proba"
            " or, if y_true lacks one of two labels, labels=."
        )
    positive = max(labels) if pos_label is None else pos_label
    negative = labels[1 - labels.index(positive)]
    return [negative, positive], np.column_stack([1 - proba.astype(np.float64), proba])


def _show(labels):
    shown = ", ".join(repr(label) for label in labels[:8])
    return f"[{shown}{', ...' if len(labels) > 8 else ''}]"
