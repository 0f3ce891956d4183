"""Accuracy against confidence, per bin."""

from numbers import Real

import numpy as np
from scipy.special import ndtri
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from sklearn_diffuq.metrics._binning import BINNING, bin_numbers, confidence_outcome_pairs
from sklearn_diffuq.metrics._probabilities import encode_labels


@validate_params(
    {
        "y_true": ["array-like"],
        "y_proba": ["array-like"],
        "labels": ["array-like", None],
        "kind": [StrOptions({"top-label", "positive"})],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
        **BINNING,
    },
    prefer_skip_nested_validation=True,
)
def reliability_curve(
    y_true,
    y_proba,
    *,
    labels=None,
    kind="top-label",
    strategy="uniform",
    n_bins=15,
    confidence_level=0.95,
    pos_label=None,
):
    r"""Accuracy against confidence per bin, with confidence intervals for the accuracy.

    The interval is Wilson's. With m samples in the bin, accuracy a and normal quantile z, it is

    .. math:: \frac{a + z^2/2m \pm z \sqrt{a(1-a)/m + z^2/4m^2}}{1 + z^2/m}.

    It lies within [0, 1] and is reliable for small bins and accuracies of 0 and 1.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. If None, the sorted distinct values of `y_true`.
    kind : {"top-label", "positive"}, default="top-label"
        Which probability is evaluated: that of the predicted label, or the column of `pos_label`.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width or of equal mass.
    n_bins : int, default=15
        Number of bins; empty ones are not returned.
    confidence_level : float, default=0.95
        Coverage of the interval.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba` and of ``kind="positive"``. If None, the greater
        one.

    Returns
    -------
    Bunch
        Arrays of shape (n_nonempty_bins,), sorted by confidence: `confidence` (mean), `accuracy`,
        `count`, and the bounds `lower` and `upper` of the interval.

    Raises
    ------
    ValueError
        If labels and columns do not match or `y_proba` does not hold probabilities.

    See Also
    --------
    ReliabilityDisplay : Plot of this curve.
    sklearn.calibration.calibration_curve : Binary problems, positive class.

    References
    ----------
    .. [1] Brown, Cai, DasGupta, "Interval Estimation for a Binomial Proportion", Statistical
       Science 16(2), 2001.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import reliability_curve
    >>> y_proba = [[0.9, 0.1, 0.0], [0.9, 0.0, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]]
    >>> curve = reliability_curve(["cat", "dog", "cow", "dog"], y_proba)
    >>> curve.confidence, curve.accuracy, curve.count
    (array([0.6, 0.9]), array([1. , 0.5]), array([2, 2]))
    """
    codes, proba, labels = encode_labels(y_true, y_proba, labels, pos_label)
    [(confidence, outcome)] = confidence_outcome_pairs(codes, proba, labels, kind, pos_label)
    order = np.lexsort((outcome, confidence))
    confidence, outcome = confidence[order], outcome[order]
    number = bin_numbers(confidence, np.ones(len(codes)), n_bins, strategy)
    count = np.bincount(number)
    filled = count > 0
    count = count[filled]
    accuracy = np.bincount(number, weights=outcome)[filled] / count
    lower, upper = _wilson_interval(accuracy, count, confidence_level)
    return Bunch(
        confidence=np.bincount(number, weights=confidence)[filled] / count,
        accuracy=accuracy,
        count=count,
        lower=lower,
        upper=upper,
    )


def _wilson_interval(accuracy, count, confidence_level):
    z2 = ndtri((1 + confidence_level) / 2) ** 2
    centre = accuracy + z2 / (2 * count)
    half = np.sqrt(z2 * (accuracy * (1 - accuracy) / count + z2 / (4 * count**2)))
    scale = 1 + z2 / count
    return np.clip((centre - half) / scale, 0, 1), np.clip((centre + half) / scale, 0, 1)
