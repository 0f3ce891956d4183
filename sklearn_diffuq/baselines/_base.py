"""What all rivals share: rows, the wrapped model, and probabilities."""

from abc import ABC, abstractmethod
from numbers import Integral, Real

import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq._inputs.rows import check_rows, safe_indexing, stratified_split
from sklearn_diffuq._wrapped.from_probabilities import FromProbabilities
from sklearn_diffuq._wrapped.ft_transformer_classifier import FTTransformerClassifier
from sklearn_diffuq._wrapped.wrap import fit_wrapped, label

COMMON = {
    "estimator": [HasMethods(["fit", "predict_proba"]), torch.nn.Module, str, None],
    "preprocessor": [callable, HasMethods(["__call__"]), str, None],
    "device": [str],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}
TRAINING = {
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "lr": [Interval(Real, 0, None, closed="neither")],
}


class BaselineClassifier(FromProbabilities, ClassifierMixin, BaseEstimator, ABC):
    """Fit and predict around a wrapped model that stays as it is.

    A subclass writes `_fit` and `_proba`. One with a parameter `validation_fraction` gets held-out
    rows in `_fit`; for the others, all rows are training rows.
    """

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, sample_weight=None, *, X_calibration=None, y_calibration=None):
        """Fit the wrapped model where it is not fitted yet, and the method on top of it.

        Parameters
        ----------
        X : array-like, DataFrame, list of str, or list of images, of length n
            Training rows, in any form the wrapped model takes.
        y : array-like of shape (n,)
            Labels.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows; rows of weight zero are dropped.
        X_calibration, y_calibration : as X and y, default=None
            Held-out rows for model selection. None takes `validation_fraction` of `X`. A method
            without that parameter selects nothing and leaves these rows unused.

        Returns
        -------
        self : object
            The fitted classifier.

        Raises
        ------
        ValueError
            If the data or the labels do not fit the wrapped model.
        BackboneError
            If the model cannot be cut into embedding, blocks and readout.
        """
        if (X_calibration is None) != (y_calibration is None):
            raise ValueError(
                "X_calibration and y_calibration belong together: give both, or neither."
            )
        rows = check_rows(X, y, sample_weight)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        held = None
        if hasattr(self, "validation_fraction"):
            if X_calibration is None:
                parts = stratified_split(rows[1], self.validation_fraction, seed)
                rows, held = ([safe_indexing(part, i) for part in rows] for i in parts)
            else:
                held = check_rows(X_calibration, y_calibration, None)
        self.wrapped_ = self._wrap(rows, seed)
        self.classes_ = self.wrapped_.classes_
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.wrapped_, name):
                setattr(self, name, getattr(self.wrapped_, name))
        held = None if held is None else label(self.wrapped_, *held)
        self._fit(label(self.wrapped_, *rows), held, seed)
        return self

    def _wrap(self, rows, seed):
        """Return the fitted wrapped model; `rows` are X, y and weights."""
        return fit_wrapped(self, *rows, seed)

    @abstractmethod
    def _fit(self, training, held_out, seed):
        """Fit the method on `LabelledInputs`; set `n_parameters_` and `n_passes_`."""

    @abstractmethod
    def _proba(self, X):
        """Return the probabilities, float64 of shape (n, n_classes)."""

    def predict_proba(self, X):
        """Return the class probabilities.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        proba : ndarray of shape (n, n_classes), float64
            Rows sum to one; columns follow `classes_`.
        """
        check_is_fitted(self)
        proba = self._proba(X)
        return proba / proba.sum(1, keepdims=True)

    def __sklearn_tags__(self):
        """Take what the wrapped model takes."""
        tags = super().__sklearn_tags__()
        estimator = FTTransformerClassifier() if self.estimator is None else self.estimator
        if hasattr(estimator, "__sklearn_tags__"):
            tags.input_tags = get_tags(estimator).input_tags
        return tags


class SamplingClassifier(BaselineClassifier):
    """A rival whose probabilities are the mean over samples of the model.

    A subclass writes `_sample_logits` instead of `_proba`.
    """

    @abstractmethod
    def _sample_logits(self, X):
        """Return the logits of each sample, float64 of shape (n, K, n_classes)."""

    def _proba(self, X):
        return softmax(self._sample_logits(X), axis=2).mean(1)

    def sample_proba(self, X):
        """Return the class probabilities of each sample.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        proba : ndarray of shape (K, n, n_classes), float64
            The samples are the same for every row; `predict_proba` is their mean.
        """
        check_is_fitted(self)
        proba = softmax(self._sample_logits(X), axis=2)
        return (proba / proba.sum(2, keepdims=True)).swapaxes(0, 1)


def count_parameters(*parts):
    """Return the number of parameters of modules, backbones and arrays, each counted once."""
    found, total = {}, 0
    for part in parts:
        if isinstance(part, torch.Tensor):
            total += part.numel()
            continue
        roots = [part]
        if hasattr(part, "custom_readout"):
            roots = [root for root in (part.module, part.custom_readout) if root is not None]
        found |= {id(p): p.numel() for root in roots for p in root.parameters()}
    return total + sum(found.values())
