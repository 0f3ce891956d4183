"""Fit the classifier that an estimator wraps, and encode the samples for it."""

import copy

import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_is_fitted, check_memory

from sklearn_diffuq._backbones.loading import is_pipeline
from sklearn_diffuq._backbones.precision import is_quantised
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import class_indices
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier
from sklearn_diffuq._wrapped.ft_transformer_classifier import FTTransformerClassifier
from sklearn_diffuq._wrapped.open_fitted import open_fitted
from sklearn_diffuq._wrapped.transformer_classifier import TransformerClassifier
from sklearn_diffuq.exceptions import BackboneError, CalibrationWarning

# What the parameter `estimator` may be; the second is a transformers pipeline.
WRAPPABLE = [
    HasMethods(["fit", "predict_proba"]),
    HasMethods(["preprocess", "postprocess"]),
    torch.nn.Module,
    str,
    None,
]


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
        check_is_fitted(estimator.estimator)
        wrapped = open_fitted(estimator)
        check_is_fitted(wrapped)
        _check_kind(owner, wrapped)
        return wrapped, label(wrapped, X, y, sample_weight)
    if isinstance(estimator, (torch.nn.Module, str)) or is_pipeline(estimator):
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
            "FrozenEstimator of one of these, which may be the one model in a fitted Pipeline, "
            "search or CalibratedClassifierCV. Put preprocessing steps that are to be fitted "
            f"before {name} in a Pipeline, not inside it."
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


def check_transition(backbone, transition):
    """Refuse a unified transition around quantised layers; warn where they leave no noise."""
    is_packed = any(is_quantised(part) for block in backbone.blocks for part in block.modules())
    if is_packed and transition == "unified":
        raise BackboneError(
            f"The blocks of the {type(backbone.module).__name__} are quantised, and a unified "
            "transition is made of their weights in floating point. Use transition='blockwise', or "
            "give the model before it was quantised."
        )
    if not backbone.passes_gradients:
        warn_user(
            f"Gradients do not pass the quantised layers of the {type(backbone.module).__name__}, "
            "and without them noise cannot be fitted: the path is its mean, and the epistemic part "
            "of predict_uncertainty is zero. Temperature and distance are fitted as ever. If the "
            "layers scale what enters them batch by batch, as dynamic int8 does, the answer for a "
            "row depends slightly on the rows beside it.",
            CalibrationWarning,
        )


def label(wrapped, X, y, sample_weight):
    """Encode samples for a fitted wrapped classifier, with the indices of its classes."""
    return LabelledInputs.of(wrapped.encode(X), class_indices(y, wrapped.classes_), sample_weight)
