"""Scores of one fitted classifier at several numbers of diffusion steps."""

import copy
import time

import numpy as np
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq.metrics import expected_calibration_error


def diffusion_step_curve(fitted, X, y, *, n_steps=None):
    """Score a fitted `DiffusionCalibratedClassifier` at each number of steps it was fitted for.

    Nothing is fitted again.

    Parameters
    ----------
    fitted : DiffusionCalibratedClassifier
        Fitted with a sequence as `n_steps`.
    X : as in `DiffusionCalibratedClassifier.fit`, of length n
        Rows to predict.
    y : array-like of shape (n,)
        Their labels.
    n_steps : sequence of int, default=None
        Numbers of steps; None takes all that were fitted, in increasing order.

    Returns
    -------
    curve : :class:`~sklearn.utils.Bunch`
        ``n_steps``, ``accuracy``, ``log_loss`` (nats), ``brier`` (summed over classes), ``ece``
        (top label, 15 equal-width bins) and ``seconds`` of the prediction, each an ndarray of
        shape (n_values,).

    Raises
    ------
    ValueError
        If a number of steps was not fitted.

    See Also
    --------
    sklearn_diffuq.metrics.DiffusionStepDisplay : Draws one of the curves.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_diffuq import DiffusionCalibratedClassifier, diffusion_step_curve
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> clf = DiffusionCalibratedClassifier(transition="blockwise", n_steps=(3, 1), random_state=0)
    >>> curve = diffusion_step_curve(clf.fit(X[:400], y[:400]), X[400:], y[400:])
    >>> curve.n_steps
    array([1, 3])
    """
    check_is_fitted(fitted)
    n_steps = sorted(fitted.fitted_steps_) if n_steps is None else list(n_steps)
    rows = []
    for n in n_steps:
        classifier = copy.copy(fitted).set_params(n_steps=n)
        start = time.perf_counter()
        proba = classifier.predict_proba(X)
        labels = classifier.classes_
        rows.append(
            {
                "n_steps": n,
                "accuracy": accuracy_score(y, labels[proba.argmax(1)]),
                "log_loss": log_loss(y, proba, labels=labels),
                "brier": brier_score_loss(y, proba, labels=labels, scale_by_half=False),
                "ece": expected_calibration_error(y, proba, labels=labels),
                "seconds": time.perf_counter() - start,
            }
        )
    return Bunch(**{name: np.array([row[name] for row in rows]) for name in rows[0]})
