import json

import numpy as np
import pytest
from safetensors.torch import load, save
from scipy.stats import norm

from sklearn_diffuq._inputs.number_map import MAX_KNOTS, MAX_QUANTILE, NumberMap
from sklearn_diffuq._state import State


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


def test_equal_values_lie_at_the_middle_of_their_ranks():
    X = column(2, 1, 2, 5, 2, 1, np.nan)
    expected = norm.ppf(np.array([3.5, 1, 3.5, 5.5, 3.5, 1]) / 6)
    found = NumberMap.fit(X).transform(X)[:, 0]
    np.testing.assert_allclose(found[:-1], expected)
    assert np.isnan(found[-1])


def test_between_two_values_the_map_is_linear():
    fitted = NumberMap.fit(column(0, 1, 1, 1, 4))
    ends = fitted.transform(column(1, 4))[:, 0]
    between = fitted.transform(column(1, 2, 3, 4))[:, 0]
    np.testing.assert_allclose(between, np.linspace(*ends, 4))


@pytest.mark.parametrize("scale", [1e-8, 1e-300, 1e9, -3.0])
def test_the_unit_of_a_column_does_not_matter(scale):
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(80, 1)).round(1), rng.normal(scale=3, size=(50, 1))
    fitted, scaled = NumberMap.fit(X), NumberMap.fit(X * scale)
    sign = np.sign(scale)
    found = scaled.transform(new * scale)
    np.testing.assert_allclose(found, sign * fitted.transform(new), atol=1e-9)
    np.testing.assert_allclose(scaled.beyond(new * scale), fitted.beyond(new), atol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [100, 30_000])
def test_rounding_changes_values_by_rounding(n, ties):
    x = np.random.default_rng(0).lognormal(sigma=2, size=(n, 1))
    x = x.round(1) if ties else x
    fitted = NumberMap.fit(x)
    assert len(fitted.knots[0]) <= MAX_KNOTS
    expected = fitted.transform(x)
    for other in (x.astype(np.float32).astype(np.float64), x / 10 * 10):
        np.testing.assert_allclose(fitted.transform(other), expected, atol=1e-4)
        np.testing.assert_allclose(fitted.beyond(other), 0, atol=1e-6)


def test_a_table_of_many_rows_keeps_the_ranks_of_its_values():
    # half of the values are zero, and a long tail follows the gap after it
    rng = np.random.default_rng(0)
    x = np.where(rng.random(50_000) < 0.5, 0.0, 1 + rng.lognormal(sigma=3, size=50_000))[:, None]
    fitted = NumberMap.fit(x)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - counts / 2) / len(x)
    found = norm.cdf(fitted.transform(x)[:, 0])
    assert np.abs(found - rank[inverse.ravel()]).max() < 0.002


def test_values_that_differ_by_rounding_are_one():
    X = column(*[0.3] * 5, *[0.1 + 0.2] * 5, *[float(np.float32(0.3))] * 5, 1.0, 0.1)
    fitted = NumberMap.fit(X)
    assert len(fitted.knots[0]) == 3
    np.testing.assert_allclose(fitted.transform(X[:15]), norm.ppf(8.5 / 17), atol=1e-7)
    assert NumberMap.fit(column(0.3, 0.1 + 0.2)).constant.all()
    # a dense column is not one value, however close its neighbours are
    dense = 1 + np.linspace(0, 1, 100_000)[:, None] ** 4
    assert len(NumberMap.fit(dense).knots[0]) > MAX_KNOTS // 4
    # nor is a column with small differences around a large mean
    times = column(*(1.6e9 + np.arange(100.0)))
    assert len(NumberMap.fit(times).knots[0]) == 100


def test_constant_columns():
    X = np.array([[1.0, np.nan, 3.0, np.nan], [2.0, np.nan, 3.0, 4.0]])
    fitted = NumberMap.fit(X)
    assert fitted.constant.tolist() == [False, True, True, True]
    later = np.array([[1.0, 7.0, 1e9, 5.0], [2.0, np.nan, np.nan, np.nan]])
    found = fitted.transform(later)[:, 1:]
    np.testing.assert_array_equal(found, [[np.nan, 0, 0], [np.nan] * 3])
    assert fitted.beyond(later).tolist() == [0, 0]
    assert NumberMap.fit(X[:, 1:]).beyond(later[:, 1:]).tolist() == [0, 0]


def test_beyond_grows_with_the_distance_to_the_range():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    fitted = NumberMap.fit(X)
    assert not fitted.beyond(X).any()
    factors = (1, 2, 10, 1e3, 1e300, 1e308)
    far = np.stack([fitted.beyond(10 * f * np.ones((1, 3))) for f in factors])[:, 0]
    assert (np.diff(far) > 0).all()
    assert np.isfinite(far).all()
    low, middle, high = np.quantile(X[:, 0], [0, 0.5, 1])
    one = np.array([[low - 2 * (middle - low), 0, np.nan], [high + (high - middle), 0, 0]])
    np.testing.assert_allclose(fitted.beyond(one), np.log1p([2, 1]) / np.sqrt(3))
    inside = np.clip(one, X.min(0), X.max(0))
    np.testing.assert_array_equal(fitted.transform(one), fitted.transform(inside))
    assert np.abs(fitted.transform(1e9 * X)).max() <= MAX_QUANTILE


def test_a_side_without_values_is_measured_by_the_range():
    fitted = NumberMap.fit(column(0, 1, 1, 1))
    np.testing.assert_allclose(fitted.beyond(column(3, -1)), np.log1p([2, 1]))


@pytest.mark.parametrize("n_columns", [0, 3])
def test_a_map_comes_back_from_its_state(n_columns):
    X = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, 3.0], [4.0, np.nan, 3.0]])[:, :n_columns]
    fitted = NumberMap.fit(X)
    state = fitted.to_state()
    loaded = NumberMap.from_state(
        State(json.loads(json.dumps(state.config)), load(save(state.tensors)))
    )
    np.testing.assert_array_equal(loaded.transform(X * 1.5), fitted.transform(X * 1.5))
    np.testing.assert_array_equal(loaded.beyond(X * 9), fitted.beyond(X * 9))
    np.testing.assert_array_equal(loaded.constant, fitted.constant)
