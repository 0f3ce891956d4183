"""Evaluate a classifier: its log-probabilities, metrics, and scores for outlier detection."""

import numpy as np
from scipy.special import log_softmax

from sklearn_diffuq.metrics import (
    area_under_risk_coverage_curve,
    augrc,
    expected_calibration_error,
    fpr_at_95_tpr,
    out_of_distribution_auroc,
    signed_calibration_gap,
    uncertainty_decomposition,
)

# Probabilities are clipped at the machine epsilon of float64, as in `sklearn.metrics.log_loss`.
FLOOR = np.log(np.finfo(np.float64).eps)


def log_probabilities(classifier, X):
    """Return the log-probabilities of a classifier, float64, shape (n, n_classes).

    They are computed from the logits if available: the logarithm of a probability rounded to
    float32 is wrong in the tails, and so is a temperature fitted to it.
    """
    if not hasattr(classifier, "decision_function"):
        proba = np.asarray(classifier.predict_proba(X), dtype=np.float64)
        return log_softmax(np.log(np.maximum(proba, np.exp(FLOOR))), axis=1)
    logits = np.asarray(classifier.decision_function(X), dtype=np.float64)
    if logits.ndim == 1:
        logits = np.column_stack([np.zeros_like(logits), logits])
    return log_softmax(logits, axis=1)


def check_logits(classifier, X):
    """Raise if the softmax of a classifier's logits differs from its probabilities."""
    proba = classifier.predict_proba(X)
    worst = np.abs(np.exp(log_probabilities(classifier, X)) - proba).max()
    if not worst < 1e-4:
        raise ValueError(
            f"{type(classifier).__name__}: softmax(decision_function) and predict_proba differ by "
            f"{worst:.2g}; they must be the same to compare results before and after temperature "
            "scaling."
        )


def sample_nll(y, log_proba):
    """Return the negative log-likelihood of each sample."""
    return -np.maximum(log_proba[np.arange(len(y)), y], FLOOR)


def measure(y, log_proba):
    """Return metric -> value for log-probabilities (n, n_classes) and class indices y (n,).

    Accuracy, the calibration errors (top label; 15 bins of equal width or, if adaptive, of equal
    mass) and the signed gap (confidence minus accuracy) are in percent, the NLL in nats, and the
    areas under the risk-coverage curve are multiplied by 1000. Error AUROC is that of detecting
    errors by their confidence.
    """
    proba = np.exp(log_proba)
    proba /= proba.sum(axis=1, keepdims=True)
    labels = np.arange(proba.shape[1])
    correct = proba.argmax(axis=1) == y
    confidence = proba.max(axis=1)
    error_auroc = np.nan
    if correct.any() and not correct.all():
        error_auroc = out_of_distribution_auroc(confidence[correct], confidence[~correct])
    adaptive = expected_calibration_error(y, proba, labels=labels, strategy="quantile")
    return {
        "accuracy": 100 * correct.mean(),
        "nll": sample_nll(y, log_proba).mean(),
        "brier": ((proba - np.eye(len(labels))[y]) ** 2).sum(axis=1).mean(),
        "ece": 100 * expected_calibration_error(y, proba, labels=labels),
        "adaptive ece": 100 * adaptive,
        "gap": 100 * signed_calibration_gap(y, proba, labels=labels),
        "aurc": 1000 * area_under_risk_coverage_curve(y, proba, labels=labels),
        "augrc": 1000 * augrc(y, proba, labels=labels),
        "error auroc": error_auroc,
    }


def divergence_from_raters(shares, log_proba):
    """Return the mean KL divergence of the predicted probabilities from the raters' label shares.

    `shares` (n, n_classes) is the share of each label among the raters of a sample; unrated samples
    are nan and ignored.
    """
    rated = ~np.isnan(shares).any(axis=1)
    shares, log_proba = shares[rated], np.maximum(log_proba[rated], FLOOR)
    log_shares = np.log(np.where(shares > 0, shares, 1))
    return (shares * (log_shares - log_proba)).sum(axis=1).mean()


def ood_scores(classifier, X, log_proba):
    """Return score name -> score of each sample; larger means more like the training data."""
    scores = {
        "max probability": np.exp(log_proba.max(axis=1)),
        "entropy": (np.exp(log_proba) * log_proba).sum(axis=1),
    }
    if hasattr(classifier, "predict_uncertainty"):
        scores["epistemic"] = -classifier.predict_uncertainty(X).epistemic
    elif hasattr(classifier, "sample_proba"):
        scores["epistemic"] = -uncertainty_decomposition(classifier.sample_proba(X)).epistemic
    if hasattr(classifier, "score_samples"):
        scores["score_samples"] = classifier.score_samples(X)
    return scores


def detection(scores_in, scores_out):
    """Return metric -> how well each score detects out-of-distribution samples."""
    found = {}
    for name, scores in scores_out.items():
        found[f"auroc, {name}"] = out_of_distribution_auroc(scores_in[name], scores)
        found[f"fpr95, {name}"] = fpr_at_95_tpr(scores_in[name], scores)
    return found
