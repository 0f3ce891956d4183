import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_diffuq.metrics import uncertainty_decomposition


def entropy(p):
    return -sum(x * np.log(x) for x in p if x > 0)


def test_uncertainty_equals_a_loop_over_samples():
    draws = np.random.default_rng(0).dirichlet([0.3, 0.3, 0.3], size=(7, 20))
    draws[0, 0] = [1, 0, 0]
    parts = uncertainty_decomposition(draws)
    for i in range(20):
        total = entropy(draws[:, i].mean(axis=0))
        aleatoric = np.mean([entropy(p) for p in draws[:, i]])
        assert parts.total[i] == pytest.approx(total)
        assert parts.aleatoric[i] == pytest.approx(aleatoric)
        assert parts.epistemic[i] == pytest.approx(total - aleatoric)


def test_extremes_in_nats():
    agree = np.full((5, 1, 4), 0.25)
    parts = uncertainty_decomposition(agree)
    assert parts.total[0] == pytest.approx(np.log(4))
    assert parts.epistemic[0] == 0
    disagree = np.eye(4)[:, None]
    parts = uncertainty_decomposition(disagree)
    assert parts.aleatoric[0] == 0
    assert parts.epistemic[0] == pytest.approx(np.log(4))
    single = uncertainty_decomposition([[[0.2, 0.8]]])
    assert single.epistemic[0] == 0


def test_nearly_equal_draws_have_a_small_uncertainty_that_is_not_negative():
    rng = np.random.default_rng(0)
    draws = np.tile(rng.dirichlet([1, 1, 1], size=500), (4, 1, 1))
    draws[0, :, 0] += 1e-12
    epistemic = uncertainty_decomposition(draws).epistemic
    assert (epistemic >= 0).all()
    assert epistemic.max() < 1e-14


@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 5), st.data())
def test_parts_add_up_and_are_bounded(n_draws, n, n_classes, data):
    size = n_draws * n * n_classes
    cells = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    draws = np.array(cells, dtype=np.float32).reshape(n_draws, n, n_classes)
    draws[draws.sum(axis=2) == 0] = 1
    draws /= draws.sum(axis=2, keepdims=True)
    parts = uncertainty_decomposition(draws)
    assert_array_equal(parts.total, parts.aleatoric + parts.epistemic)
    for part in parts.values():
        assert part.shape == (n,)
        assert (part >= 0).all()
        assert (part <= np.log(n_classes) + 1e-6).all()
    reordered = uncertainty_decomposition(draws[::-1])
    assert_allclose(reordered.epistemic, parts.epistemic, atol=1e-12)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (np.ones((3, 2)) / 2, "must have shape"),
        (np.ones((3, 2, 2)), "sum to 1"),
        (-np.ones((3, 2, 2)), "softmax"),
        (np.full((3, 2, 2), np.nan), "NaN"),
    ],
)
def test_bad_draws_are_refused(draws, message):
    with pytest.raises(ValueError, match=message):
        uncertainty_decomposition(draws)
