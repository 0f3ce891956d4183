"""Areas under risk-coverage curves: selective prediction in one number."""

import numpy as np
from sklearn.utils._param_validation import validate_params

from sklearn_diffuq.metrics._risk_coverage_curve import (
    RANKING_INPUTS,
    expected_errors,
    risk_coverage_curve,
)


@validate_params(RANKING_INPUTS, prefer_skip_nested_validation=True)
def area_under_risk_coverage_curve(
    y_true, y_proba, *, confidence=None, labels=None, pos_label=None
):
    r"""Mean selective risk over all coverages (AURC); lower is better.

    .. math:: \mathrm{AURC} = \frac1n \sum_{k=1}^n r(k/n)

    with r of `risk_coverage_curve`: the mean form of Geifman et al., not the trapezoid. It mixes
    ranking with accuracy and is dominated by the few most confident rows; `augrc` is not.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; one-dimensional: of `pos_label`.
    confidence : array-like of shape (n_samples,), default=None
        What rows are ranked by, larger = more sure. None: the largest probability of the row.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. None: the sorted distinct values of `y_true`.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. None: the greater label.

    Returns
    -------
    float
        The area, in [0, 1]. A ranking that knows nothing scores the error rate.

    See Also
    --------
    augrc : Weighs every error by its chance to be answered.

    References
    ----------
    .. [1] Geifman, Uziel, El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural
       Classifiers", ICLR 2019.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import area_under_risk_coverage_curve
    >>> y_proba = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]
    >>> round(area_under_risk_coverage_curve([0, 1, 1, 0], y_proba), 4)
    0.3333
    """
    _, risk = risk_coverage_curve(
        y_true, y_proba, confidence=confidence, labels=labels, pos_label=pos_label
    )
    return float(risk.mean())


@validate_params(RANKING_INPUTS, prefer_skip_nested_validation=True)
def augrc(y_true, y_proba, *, confidence=None, labels=None, pos_label=None):
    r"""Area under the generalised risk-coverage curve (AUGRC); lower is better.

    The generalised risk at coverage k/n is the share of *all* rows that are answered wrongly.
    Joined by straight lines from (0, 0), its area is

    .. math:: \mathrm{AUGRC} = (1 - \mathrm{AUROC}_f)\,\mathrm{acc}\,(1 - \mathrm{acc})
        + \tfrac12 (1 - \mathrm{acc})^2,

    where :math:`\mathrm{AUROC}_f` is the chance that a right answer is ranked above a wrong one.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; one-dimensional: of `pos_label`.
    confidence : array-like of shape (n_samples,), default=None
        What rows are ranked by, larger = more sure. None: the largest probability of the row.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. None: the sorted distinct values of `y_true`.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. None: the greater label.

    Returns
    -------
    float
        The area, in [0, 0.5]. A ranking that knows nothing scores half the error rate.

    See Also
    --------
    area_under_risk_coverage_curve : The older area.

    References
    ----------
    .. [1] Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification
       Systems", NeurIPS 2024.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import augrc
    >>> y_proba = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]
    >>> augrc([0, 1, 1, 0], y_proba)
    0.1875
    """
    errors = expected_errors(y_true, y_proba, confidence, labels, pos_label)
    n = len(errors)
    return float(np.trapezoid(np.concatenate([[0], errors]) / n, dx=1 / n))
