"""Split of a proper loss into calibration and refinement error."""

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
    r"""Split a proper loss into calibration error and refinement error.

    The refinement error is what is left after recalibration, the calibration error what
    recalibration removes (the variational form of Berta et al.):

    .. math:: R = \frac1n \sum_i \ell\big(g_{-i}(p_i), y_i\big), \qquad
        C = \frac1n \sum_i \ell(p_i, y_i) - R.

    Here :math:`g_{-i}` is temperature scaling fitted by log loss on the m rows of the other folds,
    mixed with a little of the uniform distribution, so that no held-out row costs infinity:
    :math:`g(p) = \frac{m}{m+1} \mathrm{softmax}(\log p / T) + \frac{1}{m+1} \frac1K`.
    Temperature is one family of recalibrations: the true refinement error is at most R, up to
    the noise of the estimate, which can also make C slightly negative.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; one-dimensional: of `pos_label`. Clipped at the machine epsilon of their
        type in the log loss, as `sklearn.metrics.log_loss` does.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. None: the sorted distinct values of `y_true`.
    loss : {"log_loss", "brier"}, default="log_loss"
        The loss, in nats, or the squared error summed over the classes (in [0, 2]).
    cv : int, cross-validation generator, iterable of (fit, test) indices or None, default=5
        An int cross-fits in that many random folds that do not depend on the order of the rows;
        None is 5.
        A list with one pair is a held-out split: losses are then means over its test rows.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. None: the greater label.

    Returns
    -------
    Bunch
        `total`, `calibration` and `refinement` (floats; total = calibration + refinement) and
        `temperatures` (ndarray of shape (n_folds,)); above 1 means over-confident.

    See Also
    --------
    expected_calibration_error : A calibration error that is not part of a loss.

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
    # A canonical order makes the random folds independent of the order of the rows.
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
