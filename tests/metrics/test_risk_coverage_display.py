import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB

from sklearn_diffuq.metrics import (
    RiskCoverageDisplay,
    area_under_risk_coverage_curve,
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
