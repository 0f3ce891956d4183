"""Areas under risk-coverage curves, which summarise selective prediction."""

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

    with r of `risk_coverage_curve`. This is the mean of Geifman et al., not the trapezoidal area.
    It depends on accuracy as well as on ranking, and unlike `augrc` it is dominated by the few most
    confident samples.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`.
    confidence : array-like of shape (n_samples,), default=None
        Values that rank the samples, larger for more confident ones. If None, the largest
        probability of each sample.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. If None, the sorted distinct values of `y_true`.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. If None, the greater label.

    Returns
    -------
    float
        The area, in [0, 1]. An uninformative ranking gives the error rate.

    Raises
    ------
    ValueError
        If labels and columns do not match, `y_proba` does not hold probabilities, or `confidence`
        is not finite or of another length.

    See Also
    --------
    augrc : The generalised area, which weights each error by how often it is answered.

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

    The generalised risk at coverage k/n is the share of *all* samples that are answered
    incorrectly. The area under it, with linear interpolation from (0, 0), is

    .. math:: \mathrm{AUGRC} = (1 - \mathrm{AUROC}_f)\,\mathrm{acc}\,(1 - \mathrm{acc})
        + \tfrac12 (1 - \mathrm{acc})^2,

    where :math:`\mathrm{AUROC}_f` is the probability that a correct answer is ranked above an
    incorrect one.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`.
    confidence : array-like of shape (n_samples,), default=None
        Values that rank the samples, larger for more confident ones. If None, the largest
        probability of each sample.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. If None, the sorted distinct values of `y_true`.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. If None, the greater label.

    Returns
    -------
    float
        The area, in [0, 0.5]. An uninformative ranking gives half the error rate.

    Raises
    ------
    ValueError
        If labels and columns do not match, `y_proba` does not hold probabilities, or `confidence`
        is not finite or of another length.

    See Also
    --------
    area_under_risk_coverage_curve : The classical area.

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
