"""Reliability diagram with confidence band and histogram."""

import numpy as np

from sklearn_diffuq.metrics._axes import axes_or_new, labelled, text_color
from sklearn_diffuq.metrics._binning import confidence_outcome_pairs
from sklearn_diffuq.metrics._calibration_errors import expected_calibration_error
from sklearn_diffuq.metrics._probabilities import encode_labels
from sklearn_diffuq.metrics._reliability_curve import reliability_curve

_DIAGONAL = "perfect calibration"
_HISTOGRAM = "confidence histogram"


class ReliabilityDisplay:
    """Reliability diagram: accuracy against confidence, with a band and a histogram.

    The dashed diagonal marks perfect calibration; below it, the model is over-confident. Create
    displays with `from_estimator` or `from_predictions`. Pass the axes of one to another to compare
    both in one diagram.

    Parameters
    ----------
    confidence, accuracy : ndarray of shape (n_bins,)
        Mean confidence and accuracy of each bin.
    lower, upper : ndarray of shape (n_bins,)
        Bounds of the confidence interval for the accuracy.
    scores : ndarray of shape (n_samples,)
        Confidence of every sample, for the histogram.
    calibration_error : float, default=None
        Calibration error shown in the legend; if None, none is shown.
    kind : {"top-label", "positive"}, default="top-label"
        Determines the axis labels.
    name : str, default=None
        Name of the method in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    band_ : matplotlib PolyCollection
        The confidence band.
    histogram_ : matplotlib StepPatch or None
        The histogram.
    ax_ : matplotlib Axes
        Axes of the curve.
    ax_histogram_ : matplotlib Axes or None
        Axes of the histogram.
    figure_ : matplotlib Figure
        The figure.

    See Also
    --------
    reliability_curve : The plotted values.
    expected_calibration_error : Summary of the diagram.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn_diffuq.metrics import ReliabilityDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> first = LogisticRegression(max_iter=500).fit(X[:900], y[:900])
    >>> second = GaussianNB().fit(X[:900], y[:900])
    >>> display = ReliabilityDisplay.from_estimator(first, X[900:], y[900:])
    >>> _ = ReliabilityDisplay.from_estimator(second, X[900:], y[900:], ax=display.ax_)
    """

    def __init__(
        self,
        confidence,
        accuracy,
        lower,
        upper,
        scores,
        *,
        calibration_error=None,
        kind="top-label",
        name=None,
    ):
        self.confidence = confidence
        self.accuracy = accuracy
        self.lower = lower
        self.upper = upper
        self.scores = scores
        self.calibration_error = calibration_error
        self.kind = kind
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, X, y, *, name=None, **kwargs):
        """Plot the reliability of a fitted classifier.

        Parameters
        ----------
        estimator : object
            Fitted classifier with `predict_proba` and `classes_`.
        X : array-like
            Inputs that the estimator accepts.
        y : array-like of shape (n_samples,)
            True labels.
        name : str, default=None
            Name in the legend; if None, the class of the estimator.
        **kwargs : dict
            Passed to `from_predictions`.

        Returns
        -------
        ReliabilityDisplay
            The display, plotted.
        """
        name = type(estimator).__name__ if name is None else name
        y_proba = estimator.predict_proba(X)
        return cls.from_predictions(y, y_proba, labels=estimator.classes_, name=name, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true,
        y_proba,
        *,
        labels=None,
        kind="top-label",
        strategy="uniform",
        n_bins=15,
        confidence_level=0.95,
        pos_label=None,
        name=None,
        ax=None,
        **kwargs,
    ):
        """Plot the reliability of predicted probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
            Probabilities; if one-dimensional, those of `pos_label`.
        labels : array-like of shape (n_classes,), default=None
            The label of each column. If None, the sorted distinct values of `y_true`.
        kind : {"top-label", "positive"}, default="top-label"
            Which probability is evaluated: that of the predicted label, or the column of
            `pos_label`.
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width or of equal mass.
        n_bins : int, default=15
            Number of bins.
        confidence_level : float, default=0.95
            Coverage of the band (Wilson's interval for each bin).
        pos_label : int, float, bool or str, default=None
            The label of a one-dimensional `y_proba` and of ``kind="positive"``. If None, the
            greater one.
        name : str, default=None
            Name of the method in the legend.
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        ReliabilityDisplay
            The display, plotted.
        """
        shared = {
            "labels": labels,
            "kind": kind,
            "strategy": strategy,
            "n_bins": n_bins,
            "pos_label": pos_label,
        }
        curve = reliability_curve(y_true, y_proba, confidence_level=confidence_level, **shared)
        problem = encode_labels(y_true, y_proba, labels, pos_label)
        [(scores, _)] = confidence_outcome_pairs(*problem, kind, pos_label)
        display = cls(
            curve.confidence,
            curve.accuracy,
            curve.lower,
            curve.upper,
            scores,
            calibration_error=expected_calibration_error(y_true, y_proba, **shared),
            kind=kind,
            name=name,
        )
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax=None, *, name=None, histogram=True, **kwargs):
        """Draw the diagram.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure. With the axes of another
            `ReliabilityDisplay`, this one is added to its diagram and histogram.
        name : str, default=None
            Name in the legend; if None, that of the constructor.
        histogram : bool, default=True
            Whether to use the lower part of the axes for a histogram.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        ReliabilityDisplay
            The display itself.
        """
        ax = axes_or_new(ax)
        name = self.name if name is None else name
        error = self.calibration_error
        label = labelled(name, None if error is None else f"ECE {error:.3f}")
        if all(line.get_gid() != _DIAGONAL for line in ax.lines):
            # Unlabelled, to save room in the legend.
            style = {"linestyle": "--", "linewidth": 1, "color": text_color(ax), "alpha": 0.6}
            ax.plot([0, 1], [0, 1], gid=_DIAGONAL, **style)
        (self.line_,) = ax.plot(
            self.confidence,
            self.accuracy,
            **{"marker": "o", "markersize": 4, "label": label, **kwargs},
        )
        color = self.line_.get_color()
        self.band_ = ax.fill_between(
            self.confidence, self.lower, self.upper, color=color, alpha=0.2, linewidth=0
        )
        top_label = self.kind == "top-label"
        x_label = "Confidence" if top_label else "Predicted probability"
        y_label = "Accuracy" if top_label else "Observed frequency"
        ax.set(xlabel=x_label, ylabel=y_label, xlim=(0, 1), ylim=(0, 1))
        if label is not None:
            ax.legend(loc="best", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        self.histogram_, self.ax_histogram_ = None, None
        if histogram:
            self._plot_histogram(ax, x_label, color)
        return self

    def _plot_histogram(self, ax, x_label, color):
        below = _histogram_axes(ax)
        edges = np.linspace(0, 1, 21)
        share = np.histogram(self.scores, edges)[0] / len(self.scores)
        below.stairs(share, edges, fill=True, color=color, alpha=0.2)
        self.histogram_ = below.stairs(share, edges, color=color)
        below.set(xlabel=x_label, ylabel="Share")
        below.locator_params(axis="y", nbins=2)
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
        self.ax_histogram_ = below


def _histogram_axes(ax):
    """Return the histogram axes below `ax`, which share its confidence axis, or create them."""
    figure = ax.figure
    for other in figure.axes:
        if other.get_label() == _HISTOGRAM and ax.get_shared_x_axes().joined(ax, other):
            return other
    place = ax.get_subplotspec()
    if place is None:
        # Axes placed by hand: use the lower part of their own rectangle.
        left, bottom, width, height = ax.get_position().bounds
        ax.set_position([left, bottom + 0.3 * height, width, 0.7 * height])
        below = [left, bottom, width, 0.24 * height]
        return figure.add_axes(below, sharex=ax, label=_HISTOGRAM)
    parts = place.subgridspec(2, 1, height_ratios=[4, 1], hspace=0.08)
    ax.set_subplotspec(parts[0])
    return figure.add_subplot(parts[1], sharex=ax, label=_HISTOGRAM)
