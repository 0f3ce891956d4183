"""Risk-coverage plot: error rate against the share of samples answered."""

import numpy as np

from sklearn_diffuq.metrics._axes import axes_or_new, labelled
from sklearn_diffuq.metrics._risk_coverage_curve import risk_coverage_curve


class RiskCoverageDisplay:
    """Error rate among the most confident samples against the share of samples answered.

    Create displays with `from_estimator` or `from_predictions`; pass ``ax=`` to compare methods.

    Parameters
    ----------
    coverage, risk : ndarray of shape (n_samples,)
        As returned by `risk_coverage_curve`.
    aurc : float, default=None
        Area under the curve, shown in the legend; if None, none is shown.
    name : str, default=None
        Name of the method in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    ax_ : matplotlib Axes
        Its axes.
    figure_ : matplotlib Figure
        The figure.

    See Also
    --------
    risk_coverage_curve : The plotted values.
    area_under_risk_coverage_curve : Summary of the curve.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn_diffuq.metrics import RiskCoverageDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> classifier = GaussianNB().fit(X[:900], y[:900])
    >>> display = RiskCoverageDisplay.from_estimator(classifier, X[900:], y[900:])
    """

    def __init__(self, coverage, risk, *, aurc=None, name=None):
        self.coverage = coverage
        self.risk = risk
        self.aurc = aurc
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, X, y, *, name=None, **kwargs):
        """Plot the curve of a fitted classifier.

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
        RiskCoverageDisplay
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
        confidence=None,
        labels=None,
        pos_label=None,
        name=None,
        ax=None,
        **kwargs,
    ):
        """Plot the curve of predicted probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
            Probabilities; if one-dimensional, those of `pos_label`.
        confidence : array-like of shape (n_samples,), default=None
            Values that rank the samples, larger for more confident ones. If None, the largest
            probability of each sample.
        labels : array-like of shape (n_classes,), default=None
            The label of each column. If None, the sorted distinct values of `y_true`.
        pos_label : int, float, bool or str, default=None
            The label of a one-dimensional `y_proba`. If None, the greater label.
        name : str, default=None
            Name of the method in the legend.
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        RiskCoverageDisplay
            The display, plotted.
        """
        coverage, risk = risk_coverage_curve(
            y_true, y_proba, confidence=confidence, labels=labels, pos_label=pos_label
        )
        return cls(coverage, risk, aurc=float(risk.mean()), name=name).plot(ax=ax, **kwargs)

    def plot(self, ax=None, *, name=None, **kwargs):
        """Draw the curve, with the vertical axis scaled to coverages of at least 5%.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure.
        name : str, default=None
            Name in the legend; if None, that of the constructor.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        RiskCoverageDisplay
            The display itself.
        """
        ax = axes_or_new(ax)
        name = self.name if name is None else name
        label = labelled(name, None if self.aurc is None else f"AURC {self.aurc:.3f}")
        # The first few samples are noise: one early error would set the scale of the whole plot.
        coverage, risk = np.asarray(self.coverage), np.asarray(self.risk)
        top = max(1.1 * risk[coverage >= 0.05].max(), 0.01)
        if ax.lines:
            top = max(top, ax.get_ylim()[1])
        (self.line_,) = ax.plot(coverage, risk, **{"label": label, **kwargs})
        ax.set(xlabel="Coverage (share of samples answered)", ylabel="Risk (error rate)")
        ax.set(xlim=(0, 1), ylim=(0, top))
        if label is not None:
            ax.legend(loc="best", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self
