"""From a classifier to numbers: log-probabilities, one temperature for everybody, and scores."""

import numpy as np
from scipy.optimize import minimize_scalar
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

# A probability of zero counts as the spacing of float64, as in `sklearn.metrics.log_loss`.
FLOOR = np.log(np.finfo(np.float64).eps)
LOG_TEMPERATURE_BOUNDS = (np.log(1e-2), np.log(1e2))


def log_probabilities(classifier, X):
    """Return the log-probabilities of a classifier, float64, shape (n, n_classes).

    They come from the logits where there are any: the logarithm of a probability that was rounded
    to float32 is wrong in the tails, and a temperature fitted to it is too.
    """
    if not hasattr(classifier, "decision_function"):
        proba = np.asarray(classifier.predict_proba(X), dtype=np.float64)
        return log_softmax(np.log(np.maximum(proba, np.exp(FLOOR))), axis=1)
    logits = np.asarray(classifier.decision_function(X), dtype=np.float64)
    if logits.ndim == 1:
        logits = np.column_stack([np.zeros_like(logits), logits])
    return log_softmax(logits, axis=1)


def check_logits(classifier, X):
    """Refuse a classifier whose logits are not those of its probabilities."""
    proba = classifier.predict_proba(X)
    worst = np.abs(np.exp(log_probabilities(classifier, X)) - proba).max()
    if not worst < 1e-4:
        raise ValueError(
            f"{type(classifier).__name__}: softmax(decision_function) and predict_proba differ by "
            f"{worst:.2g}; they must be the same to be compared before and after a temperature."
        )


def fit_temperature(log_proba, y):
    """Return the temperature with the least NLL on held-out rows, in [0.01, 100]."""
    rows = np.arange(len(y))

    def nll(log_temperature):
        return -log_softmax(log_proba / np.exp(log_temperature), axis=1)[rows, y].mean()

    found = minimize_scalar(
        nll, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def row_nll(y, log_proba):
    """Return the negative log-likelihood of each row."""
    return -np.maximum(log_proba[np.arange(len(y)), y], FLOOR)


def measure(y, log_proba):
    """Return name -> score of log-probabilities (n, n_classes) for class numbers y (n,).

    Accuracy, the calibration errors (top label, 15 bins of equal width or, adaptive, of equal
    size) and the signed gap (confidence minus accuracy) are in percent, the NLL in nats, the areas
    under the risk-coverage curve times 1000. Error AUROC tells right from wrong predictions by
    their confidence.
    """
    proba = np.exp(log_proba)
    proba /= proba.sum(axis=1, keepdims=True)
    labels = np.arange(proba.shape[1])
    right = proba.argmax(axis=1) == y
    confidence = proba.max(axis=1)
    mixed = right.any() and not right.all()
    adaptive = expected_calibration_error(y, proba, labels=labels, strategy="quantile")
    return {
        "accuracy": 100 * right.mean(),
        "nll": row_nll(y, log_proba).mean(),
        "brier": ((proba - np.eye(len(labels))[y]) ** 2).sum(axis=1).mean(),
        "ece": 100 * expected_calibration_error(y, proba, labels=labels),
        "adaptive ece": 100 * adaptive,
        "gap": 100 * signed_calibration_gap(y, proba, labels=labels),
        "aurc": 1000 * area_under_risk_coverage_curve(y, proba, labels=labels),
        "augrc": 1000 * augrc(y, proba, labels=labels),
        "error auroc": (
            out_of_distribution_auroc(confidence[right], confidence[~right]) if mixed else np.nan
        ),
    }


def divergence_from_raters(shares, log_proba):
    """Return the mean KL divergence of predicted probabilities from the shares of the raters.

    `shares` (n, n_classes) are the distributions over the labels of the people who rated a row;
    rows with nan, which nobody rated, do not count.
    """
    rated = ~np.isnan(shares).any(axis=1)
    shares, log_proba = shares[rated], np.maximum(log_proba[rated], FLOOR)
    log_shares = np.log(np.where(shares > 0, shares, 1))
    return (shares * (log_shares - log_proba)).sum(axis=1).mean()


def familiarity_scores(classifier, X, log_proba):
    """Return name -> score of each row; larger is more like the training data."""
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


def separation(inside, outside):
    """Return how well each score tells rows outside the distribution from those inside."""
    found = {}
    for name, scores in outside.items():
        found[f"auroc, {name}"] = out_of_distribution_auroc(inside[name], scores)
        found[f"fpr95, {name}"] = fpr_at_95_tpr(inside[name], scores)
    return found
