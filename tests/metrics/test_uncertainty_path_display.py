import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.utils import Bunch

from sklearn_diffuq.metrics import UncertaintyPathDisplay


@pytest.fixture
def variance():
    return np.random.default_rng(0).gamma(5, size=(101, 6)) * np.arange(1, 7)


def band_at(band, x):
    corners = band.get_paths()[0].vertices
    values = corners[corners[:, 0] == x, 1]
    return values.min(), values.max()


def test_path_is_median_and_quantile_band(variance, plt):
    display = UncertaintyPathDisplay.from_predictions(variance, quantiles=(0.2, 0.8))
    assert_array_equal(display.line_.get_xdata(), [1, 2, 3, 4, 5, 6])
    # Of 101 values, order statistics 20, 50 and 80 are these quantiles.
    ordered = np.sort(variance, axis=0)
    assert_allclose(display.line_.get_ydata(), ordered[50])
    for step in range(6):
        assert_allclose(band_at(display.band_, step + 1), ordered[[20, 80], step])
    assert display.ax_.get_legend() is None


def test_path_of_an_estimator_and_overlay(variance, plt):
    class Estimator:
        def predict_uncertainty(self, X):
            return Bunch(path_variance=variance * X)

    first = UncertaintyPathDisplay.from_estimator(Estimator(), 1, name="clean")
    second = UncertaintyPathDisplay.from_estimator(Estimator(), 3, name="noisy", ax=first.ax_)
    assert_allclose(second.line_.get_ydata(), 3 * first.line_.get_ydata())
    assert first.line_.get_color() != second.line_.get_color()
    assert [t.get_text() for t in first.ax_.get_legend().get_texts()] == ["clean", "noisy"]


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((0, 4))])
def test_path_refuses_other_shapes(bad):
    with pytest.raises(ValueError, match=r"\(n_samples, n_steps\)"):
        UncertaintyPathDisplay(bad).plot()


def test_a_variance_of_zero_is_explained_on_the_axes():
    zero = UncertaintyPathDisplay.from_predictions(np.zeros((5, 3)))
    assert [text.get_text() for text in zero.ax_.texts] == ["zero: the path has no noise"]
    some = UncertaintyPathDisplay.from_predictions(np.eye(5, 3))
    assert not some.ax_.texts
