"""Detection of out-of-distribution samples by a score."""

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions, validate_params

_SCORES = {"scores_in": ["array-like"], "scores_out": ["array-like"]}


def check_scores(scores, name):
    """Return `scores` as a finite float64 vector with at least one value."""
    scores = column_or_1d(scores).astype(np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{name} must hold at least one score and neither NaN nor infinity.")
    return scores


def _outlier_problem(scores_in, scores_out):
    scores_in = check_scores(scores_in, "scores_in")
    scores_out = check_scores(scores_out, "scores_out")
    is_out = np.repeat([0, 1], [len(scores_in), len(scores_out)])
    return is_out, -np.concatenate([scores_in, scores_out])


@validate_params(_SCORES, prefer_skip_nested_validation=True)
def out_of_distribution_auroc(scores_in, scores_out):
    """Probability that an in-distribution sample scores above an out-of-distribution sample.

    The sign convention is that of `score_samples` in scikit-learn: **larger means more like the
    training data**. Negate uncertainties. Ties count one half.

    Parameters
    ----------
    scores_in : array-like of shape (n_in,)
        Scores of in-distribution samples.
    scores_out : array-like of shape (n_out,)
        Scores of out-of-distribution samples.

    Returns
    -------
    float
        The area under the ROC curve, in [0, 1]; 0.5 is chance, and lower values suggest a wrong
        sign.

    Raises
    ------
    ValueError
        If either set is empty or holds NaN or infinity.

    See Also
    --------
    fpr_at_95_tpr : False positive rate at a fixed detection rate.
    OODScoreDisplay : Histograms of both sets of scores.
    sklearn.metrics.roc_auc_score : The underlying metric.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import out_of_distribution_auroc
    >>> out_of_distribution_auroc([0.9, 0.8, 0.3], [0.1, 0.5])
    0.833...
    """
    return float(roc_auc_score(*_outlier_problem(scores_in, scores_out)))


@validate_params(
    {**_SCORES, "positive": [StrOptions({"out", "in"})]}, prefer_skip_nested_validation=True
)
def fpr_at_95_tpr(scores_in, scores_out, *, positive="out"):
    """Rate of false positives at the strictest threshold that detects 95% of the positives.

    Papers disagree on which side is positive, and the two numbers differ; state which one you
    report. A threshold never splits a tie.

    Parameters
    ----------
    scores_in : array-like of shape (n_in,)
        Scores of in-distribution samples; larger means more like the training data.
    scores_out : array-like of shape (n_out,)
        Scores of out-of-distribution samples.
    positive : {"out", "in"}, default="out"
        "out": the share of in-distribution samples rejected when 95% of the outliers are detected.
        "in": the share of outliers accepted when 95% of the in-distribution samples are.

    Returns
    -------
    float
        The rate, in [0, 1]; lower is better.

    Raises
    ------
    ValueError
        If either set is empty or holds NaN or infinity.

    See Also
    --------
    out_of_distribution_auroc : Summary of the whole ROC curve.

    References
    ----------
    .. [1] Liang, Li, Srikant, "Enhancing the Reliability of Out-of-distribution Image Detection
       in Neural Networks", ICLR 2018.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import fpr_at_95_tpr
    >>> fpr_at_95_tpr([0.9, 0.8, 0.3], [0.1, 0.5])
    0.333...
    >>> fpr_at_95_tpr([0.9, 0.8, 0.3], [0.1, 0.5], positive="in")
    0.5
    """
    is_out, outlyingness = _outlier_problem(scores_in, scores_out)
    if positive == "in":
        is_out, outlyingness = 1 - is_out, -outlyingness
    false_rate, true_rate, _ = roc_curve(is_out, outlyingness, drop_intermediate=False)
    return float(false_rate[np.argmax(true_rate >= 0.95)])
