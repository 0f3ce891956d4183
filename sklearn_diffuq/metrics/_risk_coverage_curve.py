"""Selective prediction: answer the most confident samples and abstain on the rest."""

from numbers import Real

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import Interval, validate_params

from sklearn_diffuq.metrics._probabilities import encode_labels, top_label

RANKING_INPUTS = {
    "y_true": ["array-like"],
    "y_proba": ["array-like"],
    "confidence": ["array-like", None],
    "labels": ["array-like", None],
}


def expected_errors(y_true, y_proba, confidence, labels, pos_label):
    """Return the expected number of errors (n,) among the k most confident samples, k = 1..n.

    Tied samples are in random order, so the expectation is linear within a tie.
    """
    codes, proba, _ = encode_labels(y_true, y_proba, labels, pos_label)
    top, correct = top_label(codes, proba)
    confidence = top if confidence is None else _check_confidence(confidence, len(codes))
    _, tie = np.unique(-confidence, return_inverse=True)
    size, errors = np.bincount(tie), np.bincount(tie, weights=1 - correct)
    ends = np.concatenate([[0], np.cumsum(size)])
    return np.interp(np.arange(1, len(codes) + 1), ends, np.concatenate([[0], np.cumsum(errors)]))


def _check_confidence(confidence, n):
    confidence = column_or_1d(confidence).astype(np.float64)
    if len(confidence) != n:
        raise ValueError(f"confidence has {len(confidence)} values, but there are {n} samples.")
    if not np.isfinite(confidence).all():
        raise ValueError(
            "confidence holds NaN or infinity; larger finite values mean more certain."
        )
    return confidence


@validate_params(RANKING_INPUTS, prefer_skip_nested_validation=True)
def risk_coverage_curve(y_true, y_proba, *, confidence=None, labels=None, pos_label=None):
    r"""Error rate among the most confident samples, for every number of samples answered.

    .. math:: r(k/n) = \frac1k \sum_{i=1}^{k} 1[\hat y_{(i)} \ne y_{(i)}]

    with samples sorted by decreasing confidence. Ties are averaged over all their orders, so the
    curve does not depend on the order of the samples. Multiplied by `coverage`, it is the
    generalised risk.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`.
    confidence : array-like of shape (n_samples,), default=None
        Values that rank the samples, larger for more confident ones, such as a negated uncertainty.
        If None, the largest probability of each sample.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. If None, the sorted distinct values of `y_true`.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. If None, the greater label.

    Returns
    -------
    coverage : ndarray of shape (n_samples,)
        Share of samples answered: 1/n, 2/n, .., 1.
    risk : ndarray of shape (n_samples,)
        Error rate among them.

    Raises
    ------
    ValueError
        If labels and columns do not match, `y_proba` does not hold probabilities, or `confidence`
        is not finite or of another length.

    See Also
    --------
    area_under_risk_coverage_curve : Mean of the risk.
    RiskCoverageDisplay : Plot of this curve.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import risk_coverage_curve
    >>> y_proba = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]
    >>> coverage, risk = risk_coverage_curve([0, 1, 1, 0], y_proba)
    >>> coverage.tolist(), risk.tolist()
    ([0.25, 0.5, 0.75, 1.0], [0.0, 0.5, 0.333..., 0.5])
    """
    errors = expected_errors(y_true, y_proba, confidence, labels, pos_label)
    answered = np.arange(1, len(errors) + 1)
    return answered / len(errors), errors / answered


@validate_params(
    {**RANKING_INPUTS, "coverage": [Interval(Real, 0, 1, closed="right")]},
    prefer_skip_nested_validation=True,
)
def accuracy_at_coverage(
    y_true, y_proba, *, coverage=0.8, confidence=None, labels=None, pos_label=None
):
    """Accuracy among the most confident share of the samples.

    ``ceil(coverage * n_samples)`` samples are answered. If this splits a tie, the expectation over
    the orders of the tie is returned.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`.
    coverage : float, default=0.8
        Share of samples to answer, in (0, 1].
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
        The accuracy, in [0, 1]; higher is better.

    Raises
    ------
    ValueError
        If labels and columns do not match, `y_proba` does not hold probabilities, or `confidence`
        is not finite or of another length.

    See Also
    --------
    risk_coverage_curve : Error rate at every coverage.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import accuracy_at_coverage
    >>> y_proba = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]
    >>> accuracy_at_coverage([0, 1, 1, 0], y_proba, coverage=0.25)
    1.0
    """
    _, risk = risk_coverage_curve(
        y_true, y_proba, confidence=confidence, labels=labels, pos_label=pos_label
    )
    # 0.55 * 100 exceeds 55 in floating point; that must not add a 56th sample.
    answered = int(np.ceil(coverage * len(risk) - 1e-9))
    return float(1 - risk[max(answered, 1) - 1])
