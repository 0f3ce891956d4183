"""Metrics and plots for calibration, selective prediction and uncertainty.

Conventions shared by all of them:

- `y_true` holds labels of any sortable type. Column k of `y_proba` belongs to ``labels[k]``, by
  default the k-th of the sorted labels in `y_true`. A one-dimensional `y_proba` is the probability
  of the greater of two labels, as passed by `sklearn.metrics.make_scorer`.
- The default is "top-label", whatever the number of classes: confidence is the largest probability.
- Results do not depend on the order of the samples: ties share a bin or are averaged over orders.
- Scores follow `score_samples`: larger means more like the training data. Entropies are in nats.

This subpackage needs numpy, scipy and scikit-learn; plotting needs matplotlib.
"""

from sklearn_diffuq.metrics._calibration_errors import (
    expected_calibration_error,
    signed_calibration_gap,
)
from sklearn_diffuq.metrics._detection import fpr_at_95_tpr, out_of_distribution_auroc
from sklearn_diffuq.metrics._diffusion_step_display import DiffusionStepDisplay
from sklearn_diffuq.metrics._loss_decomposition import calibration_refinement_decomposition
from sklearn_diffuq.metrics._ood_score_display import OODScoreDisplay
from sklearn_diffuq.metrics._reliability_curve import reliability_curve
from sklearn_diffuq.metrics._reliability_display import ReliabilityDisplay
from sklearn_diffuq.metrics._risk_coverage_areas import area_under_risk_coverage_curve, augrc
from sklearn_diffuq.metrics._risk_coverage_curve import accuracy_at_coverage, risk_coverage_curve
from sklearn_diffuq.metrics._risk_coverage_display import RiskCoverageDisplay
from sklearn_diffuq.metrics._smooth_calibration import smooth_calibration_error
from sklearn_diffuq.metrics._uncertainty_decomposition import uncertainty_decomposition
from sklearn_diffuq.metrics._uncertainty_path_display import UncertaintyPathDisplay

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
