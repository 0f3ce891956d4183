"""What all baselines share: splitting the data, the wrapped model, and probabilities."""

from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import ClassVar

from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq._inputs.parts import parts_of
from sklearn_diffuq._inputs.rows import check_rows, held_out_rows
from sklearn_diffuq._inputs.torch_state import own_torch_state
from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._wrapped.estimator_parameter import EstimatorParameter
from sklearn_diffuq._wrapped.from_probabilities import FromProbabilities
from sklearn_diffuq._wrapped.wrap import WRAPPABLE, copy_features, fit_wrapped, label

COMMON = {
    "estimator": WRAPPABLE,
    "preprocessor": [callable, HasMethods(["__call__"]), str, None],
    "device": [str],
    "random_state": ["random_state"],
}
VALIDATION_FRACTION = {"validation_fraction": [Interval(Real, 0, 1, closed="neither")]}
TRAINING = {
    **VALIDATION_FRACTION,
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "lr": [Interval(Real, 0, None, closed="neither")],
    "verbose": ["verbose"],
}


def loop_options(estimator, seed, device="cpu", weight_decay=0.0):
    """Return the `LoopOptions` of a baseline that has the parameters `TRAINING`."""
    return LoopOptions(
        max_epochs=estimator.max_epochs,
        lr=estimator.lr,
        weight_decay=weight_decay,
        device=device,
        seed=seed,
        verbose=estimator.verbose,
    )


class BaselineClassifier(
    FromProbabilities, EstimatorParameter, ClassifierMixin, BaseEstimator, ABC
):
    """Fit and predict around a wrapped model, which is not changed.

    Subclasses implement `_fit` and `_proba`. `_needs_held_out` says whether `_fit` gets held-out
    rows; these classes have a parameter `validation_fraction`. For the others, all rows are
    training rows.
    """

    _needs_held_out: ClassVar[bool] = True

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, sample_weight=None, *,
            X_calibration=None, y_calibration=None, X_val=None, y_val=None):  # fmt: skip
        """Fit the wrapped model, unless it is fitted already, and then the method itself.

        Parameters
        ----------
        X : array-like, DataFrame, list of str, list of images, or data set, of length n
            Training rows, in any form the wrapped model takes.
        y : array-like of shape (n,), default=None
            Labels; None takes those of a data set.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows; rows of weight zero are dropped.
        X_calibration, y_calibration : as X and y, default=None
            Held-out rows for model selection. None holds out `validation_fraction` of `X`. Methods
            without that parameter ignore these rows.
        X_val, y_val : as X and y, default=None
            Other names of `X_calibration` and `y_calibration`, those of scikit-learn.

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
        held_out = held_out_rows(X_calibration, y_calibration, X_val, y_val)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self._needs_held_out:
            given = X, y, sample_weight
            parts = parts_of(given, held_out, self.validation_fraction, seed)
            rows, held = (part.rows for part in parts)
        else:
            rows = check_rows(X, y, sample_weight)
        with own_torch_state():
            self.wrapped_, training = self._wrap(rows, seed)
            self.classes_ = self.wrapped_.classes_
            copy_features(self.wrapped_, self)
            held_out = label(self.wrapped_, *held) if self._needs_held_out else None
            self._fit(training, held_out, seed)
        return self

    def _wrap(self, rows, seed):
        """Return the fitted wrapped model and the encoded rows; `rows` are X, y and weights."""
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
        with own_torch_state():
            proba = self._proba(X)
        return proba / proba.sum(1, keepdims=True)


class SamplingClassifier(BaselineClassifier):
    """A baseline whose probabilities are the mean over samples of the model.

    Subclasses implement `_sample_logits` instead of `_proba`.
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
        with own_torch_state():
            proba = softmax(self._sample_logits(X), axis=2)
        return (proba / proba.sum(2, keepdims=True)).swapaxes(0, 1)
