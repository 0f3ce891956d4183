"""Binary confidence-outcome pairs of predictions, and their assignment to bins."""

from numbers import Integral

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_diffuq.metrics._probabilities import top_label

# Constraints on the parameters of every binned metric, for `validate_params`.
BINNING = {
    "strategy": [StrOptions({"uniform", "quantile"})],
    "n_bins": [Interval(Integral, 1, None, closed="left")],
}


def confidence_outcome_pairs(codes, proba, labels, kind, pos_label):
    """Reduce a multiclass problem to binary ones: a list of (confidence, outcome), both (n,)."""
    if kind == "top-label":
        return [top_label(codes, proba)]
    if kind == "classwise":
        return [(proba[:, k], (codes == k).astype(np.float64)) for k in range(proba.shape[1])]
    if pos_label is None and len(labels) != 2:
        raise ValueError(
            f"kind='positive' with {len(labels)} labels needs pos_label=, the label whose"
            " probability is evaluated; or use kind='top-label' or kind='classwise'."
        )
    k = labels.index(max(labels) if pos_label is None else pos_label)
    return [(proba[:, k], (codes == k).astype(np.float64))]


def bin_numbers(confidence, weight, n_bins, strategy):
    """Return the bin number (n,) of each confidence; equal confidences always share a bin.

    Uniform bins are [a, b), the last one [a, 1]. For equal-mass bins, the total mass, in order of
    confidence, is cut into `n_bins` equal parts; the midpoint of the mass of a distinct confidence
    decides its bin.
    """
    if strategy == "uniform":
        inner_edges = np.arange(1, n_bins) / n_bins  # linspace would round 3 / 5 up
        return np.searchsorted(inner_edges, confidence, side="right")
    _, value = np.unique(confidence, return_inverse=True)
    mass = np.bincount(value, weights=weight)
    middle = np.cumsum(mass) - mass / 2
    return np.minimum((n_bins * middle / mass.sum()).astype(int), n_bins - 1)[value]
