import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_diffuq.metrics import fpr_at_95_tpr, out_of_distribution_auroc

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=40)


def pairwise_auroc(scores_in, scores_out):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores_in for b in scores_out]
    return np.mean(pairs)


def scanned_fpr(positives, negatives):
    """Share of negatives at or above the highest threshold that keeps 95% of the positives."""
    positives, negatives = np.array(positives), np.array(negatives)
    for threshold in sorted({*positives, *negatives}, reverse=True):
        if 20 * np.sum(positives >= threshold) >= 19 * len(positives):
            return np.mean(negatives >= threshold)
    raise AssertionError


def test_larger_means_in_distribution():
    assert out_of_distribution_auroc([3, 4, 5], [0, 1, 2]) == 1
    assert out_of_distribution_auroc([0, 1, 2], [3, 4, 5]) == 0
    assert out_of_distribution_auroc([1, 1], [1]) == 0.5
    assert fpr_at_95_tpr([3, 4, 5], [0, 1, 2]) == 0
    assert fpr_at_95_tpr([0, 1, 2], [3, 4, 5]) == 1


@given(scores, scores)
def test_auroc_counts_pairs(scores_in, scores_out):
    auroc = out_of_distribution_auroc(scores_in, scores_out)
    assert auroc == pytest.approx(pairwise_auroc(scores_in, scores_out))


@given(scores, scores)
def test_fpr_scans_thresholds_and_never_splits_a_tie(scores_in, scores_out):
    outlyingness_in, outlyingness_out = [-s for s in scores_in], [-s for s in scores_out]
    refused = fpr_at_95_tpr(scores_in, scores_out)
    assert refused == pytest.approx(scanned_fpr(outlyingness_out, outlyingness_in))
    accepted = fpr_at_95_tpr(scores_in, scores_out, positive="in")
    assert accepted == pytest.approx(scanned_fpr(scores_in, scores_out))


def test_exactly_95_percent_is_enough():
    outliers = np.r_[np.zeros(19), 10]
    assert fpr_at_95_tpr([5, 6, 11], outliers) == 0
    assert fpr_at_95_tpr([5, 6, 11], np.r_[np.zeros(18), 10, 10]) == pytest.approx(2 / 3)


def test_no_threshold_on_a_straight_roc_curve_is_skipped():
    assert fpr_at_95_tpr(range(100), range(100)) == 0.95


def test_the_two_conventions_differ():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, 500), rng.normal(-2, 3, 500)
    by_side = {side: fpr_at_95_tpr(inside, outside, positive=side) for side in ("out", "in")}
    assert abs(by_side["out"] - by_side["in"]) > 0.1


@pytest.mark.parametrize("metric", [out_of_distribution_auroc, fpr_at_95_tpr])
@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [np.inf]])
def test_bad_scores_are_refused(metric, bad):
    with pytest.raises(ValueError, match="scores_out must hold"):
        metric([1.0, 2.0], bad)
    with pytest.raises(ValueError, match="scores_in must hold"):
        metric(bad, [1.0, 2.0])


def test_unknown_side_is_refused():
    with pytest.raises(ValueError, match="'positive' parameter of fpr_at_95_tpr"):
        fpr_at_95_tpr([1], [0], positive="ood")
