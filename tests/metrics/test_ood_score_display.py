import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris
from sklearn.neighbors import KernelDensity

from sklearn_diffuq.metrics import OODScoreDisplay, out_of_distribution_auroc


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return rng.normal(size=2000), rng.normal(-2, 1, size=500), rng.normal(-6, 1, size=500)


def area(polygon):
    x, y = polygon.get_xy().T
    return abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def test_ood_draws_two_densities_and_the_auroc(scores, plt):
    inside, near, _ = scores
    display = OODScoreDisplay.from_predictions(inside, near)
    assert_allclose([area(display.in_), area(display.out_)], 1)
    auroc = out_of_distribution_auroc(inside, near)
    assert legend_texts(display.ax_) == [
        "In-distribution",
        f"Out-of-distribution (AUROC {auroc:.3f})",
    ]
    assert display.in_.get_edgecolor() != display.out_.get_edgecolor()


def test_further_outliers_join_without_repeating_the_inliers(scores, plt):
    inside, near, far = scores
    first = OODScoreDisplay.from_predictions(inside, far, name="far")
    second = OODScoreDisplay.from_predictions(
        inside, near, name="near", ax=first.ax_, bins=first.edges_
    )
    assert second.in_ is None
    assert_array_equal(first.edges_, second.edges_)
    assert len(legend_texts(first.ax_)) == 3


def test_heavy_tails_do_not_squeeze_the_picture(scores, plt):
    inside, near, _ = scores
    display = OODScoreDisplay.from_predictions(inside, np.r_[near, -1e6])
    assert display.edges_[0] > -10
    assert_allclose(area(display.out_), 1)


def test_constant_scores_can_be_drawn(plt):
    OODScoreDisplay.from_predictions([1.0, 1.0], [1.0])


def test_ood_of_an_estimator_uses_score_samples(plt):
    X, _ = load_iris(return_X_y=True)
    density = KernelDensity().fit(X[:50])
    display = OODScoreDisplay.from_estimator(density, X[:50], X[50:], name="others")
    assert display.auroc == 1
    assert_array_equal(display.scores_out, density.score_samples(X[50:]))


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_colours_come_from_the_style(scores, plt, style):
    from matplotlib.colors import to_rgb

    with plt.style.context(style):
        display = OODScoreDisplay.from_predictions(*scores[:2])
        cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
        assert display.in_.get_edgecolor()[:3] == to_rgb(cycle[0])
        assert display.out_.get_edgecolor()[:3] == to_rgb(cycle[1])
