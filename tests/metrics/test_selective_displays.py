import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KernelDensity

from sklearn_diffuq.metrics import (
    OODScoreDisplay,
    RiskCoverageDisplay,
    area_under_risk_coverage_curve,
    out_of_distribution_auroc,
    risk_coverage_curve,
)


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_risk_coverage_draws_the_curve(problem, plt):
    y, proba = problem
    display = RiskCoverageDisplay.from_predictions(y, proba, name="raw")
    coverage, risk = risk_coverage_curve(y, proba)
    assert_array_equal(display.line_.get_xdata(), coverage)
    assert_array_equal(display.line_.get_ydata(), risk)
    area = area_under_risk_coverage_curve(y, proba)
    assert legend_texts(display.ax_) == [f"raw (AURC {area:.3f})"]


def test_risk_coverage_of_an_estimator(plt):
    X, y = load_iris(return_X_y=True)
    y = np.array(["c", "a", "b"])[y]
    classifier = GaussianNB().fit(X, y)
    first = RiskCoverageDisplay.from_estimator(classifier, X[50:], y[50:])
    second = RiskCoverageDisplay.from_predictions(
        y[50:], classifier.predict_proba(X[50:]), labels=classifier.classes_
    )
    assert_array_equal(first.risk, second.risk)


@pytest.mark.parametrize("signs", [(1, -1), (-1, 1)])
def test_a_worse_method_on_the_same_axes_stays_in_view(problem, plt, signs):
    y, proba = problem
    ax = None
    displays = []
    for sign in signs:
        confidence = sign * proba.max(axis=1)
        display = RiskCoverageDisplay.from_predictions(
            y, proba, confidence=confidence, name=f"{sign}", ax=ax
        )
        ax = display.ax_
        displays.append(display)
    for display in displays:
        assert ax.get_ylim()[1] >= display.risk[display.coverage >= 0.05].max()
    assert len(legend_texts(ax)) == 2


def test_an_early_error_does_not_set_the_scale(plt):
    y = np.r_[1, np.zeros(199, dtype=int)]
    p = np.linspace(0.0, 0.49, 200)
    display = RiskCoverageDisplay.from_predictions(y, p)
    assert display.risk[0] == 1
    assert display.ax_.get_ylim()[1] < 0.2


def test_all_right_still_has_an_axis(plt):
    display = RiskCoverageDisplay.from_predictions([0, 1, 1], [0.1, 0.9, 0.8])
    assert display.ax_.get_ylim() == (0, 0.01)


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
