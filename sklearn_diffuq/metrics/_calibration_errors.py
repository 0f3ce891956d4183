"""Binned calibration errors, with one convention for every number of classes."""

import numpy as np
from sklearn.utils._param_validation import StrOptions, validate_params

from sklearn_diffuq.metrics._binning import BINNING, bin_numbers, confidence_outcome_pairs
from sklearn_diffuq.metrics._probabilities import check_weights, encode_labels, top_label


def _binned_error(confidence, outcome, weight, n_bins, strategy, norm):
    # Sorting first makes the result independent of the order of the samples, bit for bit.
    order = np.lexsort((weight, outcome, confidence))
    confidence, outcome, weight = confidence[order], outcome[order], weight[order]
    number = bin_numbers(confidence, weight, n_bins, strategy)
    mass = np.bincount(number, weights=weight)
    excess = np.bincount(number, weights=weight * (confidence - outcome))
    filled = mass > 0
    share, gap = mass[filled] / mass.sum(), np.abs(excess[filled] / mass[filled])
    if norm == "l1":
        return float(share @ gap)
    return float(np.sqrt(share @ gap**2)) if norm == "l2" else float(gap.max())


@validate_params(
    {
        "y_true": ["array-like"],
        "y_proba": ["array-like"],
        "labels": ["array-like", None],
        "kind": [StrOptions({"top-label", "classwise", "positive"})],
        "norm": [StrOptions({"l1", "l2", "max"})],
        "sample_weight": ["array-like", None],
        **BINNING,
    },
    prefer_skip_nested_validation=True,
)
def expected_calibration_error(
    y_true,
    y_proba,
    *,
    labels=None,
    kind="top-label",
    strategy="uniform",
    norm="l1",
    n_bins=15,
    pos_label=None,
    sample_weight=None,
):
    r"""Binned distance between confidence and accuracy.

    With samples grouped by confidence into bins :math:`B_m`, the error is

    .. math:: \Big( \sum_m \frac{|B_m|}{n} \,
        |\mathrm{conf}(B_m) - \mathrm{acc}(B_m)|^q \Big)^{1/q}

    with q = 1 (``norm="l1"``, the ECE), q = 2 (RMSCE) or the largest gap (``"max"``, the MCE).
    Lower is better; 0 means perfect calibration on these bins. The estimate is biased upwards,
    most of all for small samples.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, of any sortable type.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label` in a problem with two labels.
        Rounding errors of float32 and half precision are corrected; logits and unnormalised
        probabilities raise.
    labels : array-like of shape (n_classes,), default=None
        The label of each column of `y_proba`. If None, the sorted distinct values of `y_true`, one
        per column.
    kind : {"top-label", "classwise", "positive"}, default="top-label"
        Which probabilities are evaluated. "top-label": that of the predicted label against whether
        it is correct, for any number of classes (Guo et al.). "classwise": each column against
        its label, averaged over columns (Kull et al.). "positive": the column of `pos_label`.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width on [0, 1], closed on the left and the last one on both sides, or of
        equal mass ("adaptive ECE"). Equal confidences share a bin, so the order of the samples
        never matters.
    norm : {"l1", "l2", "max"}, default="l1"
        How the gaps are combined; within each class for ``kind="classwise"``.
    n_bins : int, default=15
        Number of bins; empty ones are ignored.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba` and of ``kind="positive"``. If None, the greater of
        two labels, as in `sklearn.metrics.make_scorer`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights; an integer weight is equivalent to repeating the sample. If None, all are 1.

    Returns
    -------
    float
        The error, in [0, 1].

    Raises
    ------
    ValueError
        If labels and columns do not match or `y_proba` does not hold probabilities.

    See Also
    --------
    smooth_calibration_error : Calibration error without bins.
    signed_calibration_gap : Over- or under-confidence.
    ReliabilityDisplay : The corresponding diagram.

    References
    ----------
    .. [1] Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    .. [2] Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multiclass
       probabilities with Dirichlet calibration", NeurIPS 2019.
    .. [3] Nixon et al., "Measuring Calibration in Deep Learning", CVPR Workshops 2019.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import expected_calibration_error
    >>> y_proba = [[0.9, 0.1, 0.0], [0.9, 0.0, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]]
    >>> y_true = ["cat", "dog", "cow", "dog"]
    >>> round(expected_calibration_error(y_true, y_proba), 3)
    0.4

    As a scorer for cross-validation:

    >>> from sklearn.metrics import make_scorer
    >>> scorer = make_scorer(
    ...     expected_calibration_error, response_method="predict_proba", greater_is_better=False)
    """
    codes, proba, labels = encode_labels(y_true, y_proba, labels, pos_label)
    weight = check_weights(sample_weight, len(codes))
    pairs = confidence_outcome_pairs(codes, proba, labels, kind, pos_label)
    errors = [_binned_error(*pair, weight, n_bins, strategy, norm) for pair in pairs]
    return float(np.mean(errors))


@validate_params(
    {
        "y_true": ["array-like"],
        "y_proba": ["array-like"],
        "labels": ["array-like", None],
        "sample_weight": ["array-like", None],
    },
    prefer_skip_nested_validation=True,
)
def signed_calibration_gap(y_true, y_proba, *, labels=None, pos_label=None, sample_weight=None):
    r"""Mean top-label confidence minus accuracy: positive when over-confident.

    .. math:: \frac1n \sum_i \big( \max_k p_{ik} - 1[\hat y_i = y_i] \big)

    Its absolute value never exceeds the l1 top-label calibration error.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. If None, the sorted distinct values of `y_true`.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba`. If None, the greater label.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights. If None, all are 1.

    Returns
    -------
    float
        The gap, in [-1, 1].

    Raises
    ------
    ValueError
        If labels and columns do not match or `y_proba` does not hold probabilities.

    See Also
    --------
    expected_calibration_error : Absolute gaps, averaged over bins.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import signed_calibration_gap
    >>> y_proba = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]
    >>> round(signed_calibration_gap([0, 1, 1, 0], y_proba), 3)
    0.25
    """
    codes, proba, _ = encode_labels(y_true, y_proba, labels, pos_label)
    weight = check_weights(sample_weight, len(codes))
    confidence, correct = top_label(codes, proba)
    order = np.lexsort((weight, correct, confidence))
    return float(np.average((confidence - correct)[order], weights=weight[order]))
