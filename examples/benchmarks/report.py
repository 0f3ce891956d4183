"""Scores shared by the benchmarks."""

import numpy as np
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from sklearn_diffuq.metrics import (
    area_under_risk_coverage_curve,
    expected_calibration_error,
    signed_calibration_gap,
)


def measure(y, proba, classes=None):
    """Return the scores of probabilities (n, n_classes) for labels `y` (n,).

    Accuracy, ECE (top label, 15 equal-width bins) and the signed gap (confidence minus accuracy)
    are in percent, the log loss (NLL) in nats, the area under the risk-coverage curve times 1000.
    """
    classes = np.arange(proba.shape[1]) if classes is None else np.asarray(classes)
    return {
        "accuracy": 100 * accuracy_score(y, classes[proba.argmax(axis=1)]),
        "nll": log_loss(y, proba, labels=classes),
        "brier": brier_score_loss(y, proba, labels=classes, scale_by_half=False),
        "ece": 100 * expected_calibration_error(y, proba, labels=classes),
        "gap": 100 * signed_calibration_gap(y, proba, labels=classes),
        "aurc": 1000 * area_under_risk_coverage_curve(y, proba, labels=classes),
    }
