"""From what the user gives to what the path needs: a fitted wrapped classifier and its rows."""

import copy
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    check_memory,
    column_or_1d,
)

from sklearn_diffuq._inputs import LabelledInputs
from sklearn_diffuq._transformers import FTTransformerClassifier, TransformerClassifier
from sklearn_diffuq.exceptions import BackboneError, CalibrationWarning

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


def fit_wrapped(owner, X, y, sample_weight, seed, memory=None):
    """Return the fitted wrapped classifier of an estimator with a parameter `estimator`.

    An unfitted scikit-learn estimator is cloned and trained; a torch model is taken as
    pre-trained and a `FrozenEstimator` as fitted.
    """
    estimator = owner.estimator
    if isinstance(estimator, FrozenEstimator):
        wrapped = estimator.estimator
        check_is_fitted(wrapped)
    elif isinstance(estimator, (torch.nn.Module, str)):
        wrapped = TransformerClassifier(
            estimator, preprocessor=owner.preprocessor, device=owner.device, random_state=seed
        )
        wrapped.fit(X, y, sample_weight)
    else:
        wrapped = FTTransformerClassifier(device=owner.device) if estimator is None else estimator
        wrapped = clone(wrapped)
        if "random_state" in wrapped.get_params() and wrapped.random_state is None:
            wrapped.set_params(random_state=seed)
        if hasattr(wrapped, "encode"):
            wrapped = check_memory(memory).cache(_fit)(wrapped, X, y, sample_weight)
    if not hasattr(wrapped, "encode"):
        name = type(owner).__name__
        raise TypeError(
            f"{name} cannot look into a {type(wrapped).__name__}: estimator must be None, a torch "
            "model, the path of one, a TransformerClassifier, a FTTransformerClassifier, or a "
            f"FrozenEstimator of one of these. Put preprocessing steps before {name} in a "
            "Pipeline, not inside it."
        )
    return wrapped


def _fit(estimator, X, y, sample_weight):
    estimator.fit(X, y, sample_weight)
    return estimator


def choose_readout(wrapped, readout, training):
    """Return the wrapped classifier with the readout that the parameter `readout` asks for.

    The wrapped classifier itself is not changed.
    """
    if readout == "frozen" and wrapped.backbone_.custom_readout is not None:
        raise ValueError(
            "readout='frozen', but the wrapped model has no head that fits the labels. Give a "
            "model with a fitting head, or readout='auto', which fits one."
        )
    if readout == "refit":
        wrapped = copy.copy(wrapped)
        weight = training.weight / training.weight.mean()  # else its unit would set the penalty
        wrapped.refit_readout(training.inputs, training.y.numpy(), weight.numpy())
    if readout == "finetune":
        wrapped = copy.deepcopy(wrapped)
    return wrapped


def check_precision(module):
    """Refuse a model that is not in float32: path, covariance and readout are."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if found - {torch.float32}:
        raise BackboneError(
            f"The wrapped model has parameters of {', '.join(sorted(map(str, found)))}; only "
            "torch.float32 can be calibrated. Convert it with model.float(), or give its path or "
            "name, which is loaded in float32."
        )


def label(wrapped, X, y, sample_weight):
    """Encode rows for the wrapped model and give their labels its class indices."""
    unseen = np.setdiff1d(y, wrapped.classes_)
    if len(unseen):
        raise ValueError(
            f"The labels {unseen.tolist()} are unknown to the wrapped model, whose classes are "
            f"{np.asarray(wrapped.classes_).tolist()}. Give rows of these classes, or a model that "
            "was trained with all classes."
        )
    order = np.argsort(wrapped.classes_)
    index = order[np.searchsorted(np.asarray(wrapped.classes_)[order], y)]
    weight = torch.as_tensor(sample_weight, dtype=torch.float64)
    return LabelledInputs(wrapped.encode(X), torch.as_tensor(index), weight)
