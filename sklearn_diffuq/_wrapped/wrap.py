"""Fit the classifier that an estimator wraps, and encode the samples for it."""

import copy

import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted, check_memory

from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import class_indices
from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier
from sklearn_diffuq._wrapped.ft_transformer_classifier import FTTransformerClassifier
from sklearn_diffuq._wrapped.transformer_classifier import TransformerClassifier
from sklearn_diffuq.exceptions import BackboneError


def fit_wrapped(owner, X, y, sample_weight, seed, memory=None):
    """Fit the wrapped classifier of an estimator with a parameter `estimator`.

    An unfitted scikit-learn estimator is cloned and trained; a torch model is taken as
    pre-trained and a `FrozenEstimator` as fitted.

    Returns
    -------
    wrapped : BackboneClassifier
    training : LabelledInputs
        The samples, encoded.
    """
    estimator = owner.estimator
    if isinstance(estimator, FrozenEstimator):
        wrapped = estimator.estimator
        check_is_fitted(wrapped)
        _check_kind(owner, wrapped)
        return wrapped, label(wrapped, X, y, sample_weight)
    if isinstance(estimator, (torch.nn.Module, str)):
        wrapped = TransformerClassifier(
            estimator, preprocessor=owner.preprocessor, device=owner.device, random_state=seed
        )
        return _fit_encode(wrapped, X, y, sample_weight)
    wrapped = (
        FTTransformerClassifier(device=owner.device) if estimator is None else clone(estimator)
    )
    _check_kind(owner, wrapped)
    if wrapped.random_state is None:
        wrapped.set_params(random_state=seed)
    return check_memory(memory).cache(_fit_encode)(wrapped, X, y, sample_weight)


def _fit_encode(wrapped, X, y, sample_weight):
    training = wrapped.fit_encode(X, y, sample_weight)
    return wrapped, training


def _check_kind(owner, wrapped):
    if not isinstance(wrapped, BackboneClassifier):
        name = type(owner).__name__
        raise TypeError(
            f"{name} cannot look into a {type(wrapped).__name__}: estimator must be None, a torch "
            "model, the path of one, a TransformerClassifier, a FTTransformerClassifier, or a "
            f"FrozenEstimator of one of these. Put preprocessing steps before {name} in a "
            "Pipeline, not inside it."
        )


def copy_features(wrapped, estimator):
    """Give an estimator the number and names of the features of its wrapped classifier."""
    for name in ("n_features_in_", "feature_names_in_"):
        vars(estimator).pop(name, None)  # of an earlier fit
        if hasattr(wrapped, name):
            setattr(estimator, name, getattr(wrapped, name))


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
        wrapped.refit_readout(training)
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
    """Encode samples for a fitted wrapped classifier, with the indices of its classes."""
    return LabelledInputs.of(wrapped.encode(X), class_indices(y, wrapped.classes_), sample_weight)
