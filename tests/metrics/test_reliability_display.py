import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB

from sklearn_diffuq.metrics import (
    ReliabilityDisplay,
    expected_calibration_error,
    reliability_curve,
)


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_draws_the_curve_its_interval_and_the_histogram(problem, plt):
    y, proba = problem
    display = ReliabilityDisplay.from_predictions(y, proba, n_bins=10, name="raw")
    curve = reliability_curve(y, proba, n_bins=10)
    assert_array_equal(display.line_.get_xdata(), curve.confidence)
    assert_array_equal(display.line_.get_ydata(), curve.accuracy)
    corners = display.band_.get_paths()[0].vertices
    for x, low, high in zip(curve.confidence, curve.lower, curve.upper):
        assert {low, high} <= set(corners[corners[:, 0] == x, 1])
    share, edges, _ = display.histogram_.get_data()
    assert_allclose(share.sum(), 1)
    assert_allclose(share[-1], np.mean(proba.max(axis=1) >= edges[-2]))
    error = expected_calibration_error(y, proba, n_bins=10)
    assert legend_texts(display.ax_) == [f"raw (ECE {error:.3f})"]
    assert display.figure_ is display.ax_.figure
    assert (display.ax_.get_ylabel(), display.ax_histogram_.get_xlabel()) == (
        "Accuracy",
        "Confidence",
    )


def test_estimator_and_predictions_agree(plt):
    X, y = load_iris(return_X_y=True)
    y = np.array(["c", "a", "b"])[y]
    classifier = GaussianNB().fit(X, y)
    first = ReliabilityDisplay.from_estimator(classifier, X[50:], y[50:])
    proba = classifier.predict_proba(X[50:])
    second = ReliabilityDisplay.from_predictions(y[50:], proba, labels=["a", "b", "c"])
    assert_array_equal(first.accuracy, second.accuracy)
    assert legend_texts(first.ax_)[0].startswith("GaussianNB (ECE")
    assert legend_texts(second.ax_)[0].startswith("ECE")


@pytest.mark.parametrize("by_hand", [False, True])
def test_methods_share_one_diagram(problem, plt, by_hand):
    y, proba = problem
    calibrated = np.sqrt(proba) / np.sqrt(proba).sum(axis=1, keepdims=True)
    ax = plt.figure().add_axes([0.2, 0.2, 0.7, 0.7]) if by_hand else None
    first = ReliabilityDisplay.from_predictions(y, proba, name="raw", ax=ax)
    second = ReliabilityDisplay.from_predictions(y, calibrated, name="scaled", ax=first.ax_)
    assert second.ax_ is first.ax_
    assert second.ax_histogram_ is first.ax_histogram_
    assert len(first.figure_.axes) == 2
    assert len(first.ax_.lines) == 3  # one diagonal
    assert first.line_.get_color() != second.line_.get_color()
    assert len(legend_texts(first.ax_)) == 2
    low, high = (axes.get_position() for axes in (first.ax_histogram_, first.ax_))
    assert low.y1 <= high.y0


def test_each_panel_gets_its_own_histogram(problem, plt):
    _, axes = plt.subplots(1, 2, layout="constrained")
    displays = [ReliabilityDisplay.from_predictions(*problem, ax=ax) for ax in axes]
    assert displays[0].ax_histogram_ is not displays[1].ax_histogram_
    assert len(displays[0].figure_.axes) == 4


def test_without_histogram(problem, plt):
    display = ReliabilityDisplay.from_predictions(*problem, histogram=False)
    assert display.ax_histogram_ is None
    assert len(display.figure_.axes) == 1
    assert display.ax_.get_xlabel() == "Confidence"


def test_positive_class_has_its_own_labels(binary_problem, plt):
    display = ReliabilityDisplay.from_predictions(*binary_problem, kind="positive")
    assert display.ax_.get_ylabel() == "Observed frequency"
    assert_array_equal(display.scores, binary_problem[1])


@pytest.mark.parametrize("style", ["default", "dark_background", "ggplot"])
def test_colours_come_from_the_style(problem, plt, style):
    with plt.style.context(style):
        display = ReliabilityDisplay.from_predictions(*problem)
        cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
        assert display.line_.get_color() == cycle[0]
        [diagonal] = [line for line in display.ax_.lines if line is not display.line_]
        assert diagonal.get_color() == plt.rcParams["axes.labelcolor"]


def test_line_options_and_name_can_be_overridden(problem, plt):
    display = ReliabilityDisplay.from_predictions(*problem, name="a")
    display.plot(name="b", color="tab:red", linestyle=":", marker="s")
    assert display.line_.get_color() == "tab:red"
    assert display.line_.get_marker() == "s"
    assert legend_texts(display.ax_)[0].startswith("b (ECE")
