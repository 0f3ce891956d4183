"""Metrics for calibration, selective prediction and uncertainty, and their plots.

Conventions, the same everywhere:

- `y_true` holds labels of any sortable type; column k of `y_proba` is the label ``labels[k]``,
  by default the k-th of the sorted labels in `y_true`. A one-dimensional `y_proba` is the
  probability of the greater of two labels, which is what `sklearn.metrics.make_scorer` passes.
- "Top-label" is the default for two classes as for many: confidence is the largest probability.
- Results do not depend on the order of the rows: ties share a bin or are averaged over orders.
- Scores follow `score_samples`: larger = more like the training data. Entropies are in nats.

This subpackage needs numpy, scipy and scikit-learn; plotting needs matplotlib.
"""

from sklearn_diffuq.metrics._calibration import (
    expected_calibration_error,
    reliability_curve,
    signed_calibration_gap,
)
from sklearn_diffuq.metrics._decomposition import (
    calibration_refinement_decomposition,
    uncertainty_decomposition,
)
from sklearn_diffuq.metrics._out_of_distribution import fpr_at_95_tpr, out_of_distribution_auroc
from sklearn_diffuq.metrics._path_displays import DiffusionStepDisplay, UncertaintyPathDisplay
from sklearn_diffuq.metrics._reliability_display import ReliabilityDisplay
from sklearn_diffuq.metrics._selective import (
    accuracy_at_coverage,
    area_under_risk_coverage_curve,
    augrc,
    risk_coverage_curve,
)
from sklearn_diffuq.metrics._selective_displays import OODScoreDisplay, RiskCoverageDisplay
from sklearn_diffuq.metrics._smooth_calibration import smooth_calibration_error

__all__ = [
    "DiffusionStepDisplay",
    "OODScoreDisplay",
    "ReliabilityDisplay",
    "RiskCoverageDisplay",
    "UncertaintyPathDisplay",
    "accuracy_at_coverage",
    "area_under_risk_coverage_curve",
    "augrc",
    "calibration_refinement_decomposition",
    "expected_calibration_error",
    "fpr_at_95_tpr",
    "out_of_distribution_auroc",
    "reliability_curve",
    "risk_coverage_curve",
    "signed_calibration_gap",
    "smooth_calibration_error",
    "uncertainty_decomposition",
]
