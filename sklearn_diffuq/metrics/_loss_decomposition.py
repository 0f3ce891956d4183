"""Decomposition of a proper loss into calibration and refinement error."""

from numbers import Integral

import numpy as np
from scipy.special import softmax
from sklearn.model_selection import KFold, check_cv
from sklearn.utils import Bunch
from sklearn.utils._param_validation import StrOptions, validate_params

from sklearn_diffuq.metrics._probabilities import encode_labels
from sklearn_diffuq.metrics._temperature import fit_temperature


@validate_params(
    {
        "y_true": ["array-like"],
        "y_proba": ["array-like"],
        "labels": ["array-like", None],
        "loss": [StrOptions({"log_loss", "brier"})],
        "cv": ["cv_object"],
    },
    prefer_skip_nested_validation=True,
)
def calibration_refinement_decomposition(
    y_true, y_proba, *, labels=None, loss="log_loss", cv=5, pos_label=None
):
    r"""Decompose a proper loss into calibration error and refinement error.

    The refinement error is the loss that remains after recalibration, and the calibration error is
    what recalibration removes (the variational form of Berta et al.):

    .. math:: R = \frac1n \sum_i \ell\big(g_{-i}(p_i), y_i\big), \qquad
        C = \frac1n \sum_i \ell(p_i, y_i) - R.

    Here :math:`g_{-i}` is temperature scaling fitted by log loss on the m samples of the other
    folds, mixed with the uniform distribution so that no held-out loss is infinite:
    :math:`g(p) = \frac{m}{m+1} \mathrm{softmax}(\log p / T) + \frac{1}{m+1} \frac1K`.
    Temperature scaling is only one family of recalibrations, so R is an upper bound on the true
    refinement error, up to estimation noise, which can also make C slightly negative.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`. The log loss clips them at the
        machine epsilon of their type, as `sklearn.metrics.log_loss` does.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. If None, the sorted distinct values of `y_true`.
    loss : {"log_loss", "brier"}, default="log_loss"
        The log loss in nats, or the squared error summed over the classes (in [0, 2]).
    cv : int, cross-validation generator, iterable of (fit, test) indices or None, default=5
        An int is a number of random folds, which do not depend on the order of the samples; None
        means 5. A list with a single pair is a held-out split: losses are then means over its
        test samples.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. If None, the greater label.

    Returns
    -------
    Bunch
        `total`, `calibration` and `refinement` (floats; total = calibration + refinement) and
        `temperatures` (ndarray of shape (n_folds,)), which are above 1 for over-confident
        predictions.

    Raises
    ------
    ValueError
        If labels and columns do not match or `y_proba` does not hold probabilities.

    See Also
    --------
    expected_calibration_error : Binned calibration error, not part of a loss.

    References
    ----------
    .. [1] Berta, Holzmüller, Jordan, Bach, "Rethinking Early Stopping: Refine, Then Calibrate",
       arXiv:2501.19195, 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_diffuq.metrics import calibration_refinement_decomposition
    >>> y_true = np.tile([0, 0, 0, 1], 100)
    >>> overconfident = np.tile([0.99, 0.01], (400, 1))
    >>> parts = calibration_refinement_decomposition(y_true, overconfident)
    >>> print(f"{parts.total:.2f} = {parts.calibration:.2f} + {parts.refinement:.2f}")
    1.16 = 0.60 + 0.56
    """
    floor = _probability_floor(y_proba)
    codes, proba, _ = encode_labels(y_true, y_proba, labels, pos_label)
    # A canonical order makes the random folds independent of the order of the samples.
    order = np.arange(len(codes))
    if cv is None or isinstance(cv, Integral):
        order = np.lexsort((codes, *proba.T))
        cv = KFold(cv or 5, shuffle=True, random_state=0)
    codes, proba = codes[order], proba[order]
    log_proba = np.log(np.maximum(proba, floor))
    before, after, temperatures = [], [], []
    for fit, test in check_cv(cv).split(proba, codes):
        temperatures.append(fit_temperature(log_proba[fit], codes[fit]))
        recalibrated = softmax(log_proba[test] / temperatures[-1], axis=1)
        weight = 1 / (len(log_proba[fit]) + 1)
        recalibrated = (1 - weight) * recalibrated + weight / proba.shape[1]
        before.append(_losses(proba[test], codes[test], loss, floor))
        after.append(_losses(recalibrated, codes[test], loss, floor))
    total, refinement = np.concatenate(before).mean(), np.concatenate(after).mean()
    return Bunch(
        total=float(total),
        calibration=float(total - refinement),
        refinement=float(refinement),
        temperatures=np.array(temperatures),
    )


def _probability_floor(y_proba):
    dtype = getattr(y_proba, "dtype", np.dtype(np.float64))
    floating = isinstance(dtype, np.dtype) and np.issubdtype(dtype, np.floating)
    return float(np.finfo(dtype if floating else np.float64).eps)


def _losses(proba, codes, loss, floor):
    true = proba[np.arange(len(codes)), codes]
    if loss == "log_loss":
        return -np.log(np.maximum(true, floor))
    return (proba**2).sum(axis=1) - 2 * true + 1
