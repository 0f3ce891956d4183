import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binomtest

from sklearn_diffuq.metrics import expected_calibration_error, reliability_curve


def test_equal_mass_bins_are_equal():
    p = np.random.default_rng(0).random(1000)
    curve = reliability_curve(np.arange(1000) % 2, p, strategy="quantile", n_bins=8)
    assert_array_equal(curve.count, np.full(8, 125))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_reliability_curve_sums_to_the_error(problem, strategy):
    y, proba = problem
    curve = reliability_curve(y, proba, strategy=strategy)
    assert curve.count.sum() == len(y)
    assert (np.diff(curve.confidence) > 0).all()
    error = np.sum(curve.count * abs(curve.confidence - curve.accuracy)) / len(y)
    assert error == pytest.approx(expected_calibration_error(y, proba, strategy=strategy))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_reliability_interval_is_wilsons(problem, level):
    y, proba = problem
    curve = reliability_curve(y[:80], proba[:80], confidence_level=level)
    hits = np.round(curve.accuracy * curve.count).astype(int)
    for k, n, low, high in zip(hits, curve.count, curve.lower, curve.upper):
        interval = binomtest(int(k), int(n)).proportion_ci(level, method="wilson")
        assert_allclose([low, high], [interval.low, interval.high], atol=1e-12)


def test_reliability_curve_of_the_positive_class():
    curve = reliability_curve([0, 1, 1, 0], [0.1, 0.15, 0.9, 0.8], kind="positive", n_bins=5)
    assert_allclose(curve.confidence, [0.125, 0.85])
    assert_allclose(curve.accuracy, [0.5, 0.5])
