"""Plots of rankings: risk against coverage, scores in and out of distribution."""

import numpy as np

from sklearn_diffuq.metrics._axes import axes_or_new, has_label, labelled
from sklearn_diffuq.metrics._out_of_distribution import check_scores, out_of_distribution_auroc
from sklearn_diffuq.metrics._selective import risk_coverage_curve

_IN = "In-distribution"
_OUT = "Out-of-distribution"


class RiskCoverageDisplay:
    """Error rate among the most confident rows against the share of rows answered.

    Use `from_estimator` or `from_predictions`; pass ``ax=`` to compare methods.

    Parameters
    ----------
    coverage, risk : ndarray of shape (n_samples,)
        As returned by `risk_coverage_curve`.
    aurc : float, default=None
        Area under the curve, shown in the legend.
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
    risk_coverage_curve : The numbers.
    area_under_risk_coverage_curve : Their summary.

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
            Name in the legend; None: the class of the estimator.
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
            Probabilities; one-dimensional: of `pos_label`.
        confidence : array-like of shape (n_samples,), default=None
            What rows are ranked by, larger = more sure. None: the largest probability.
        labels : array-like of shape (n_classes,), default=None
            The label of each column. None: the sorted distinct values of `y_true`.
        pos_label : int, float, bool or str, default=None
            The label of a one-dimensional `y_proba`. None: the greater label.
        name : str, default=None
            Name of the method in the legend.
        ax : matplotlib Axes, default=None
            Axes to plot on; None: a new figure.
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
        """Draw the curve; the vertical axis is scaled to coverages of 5% and more.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None: a new figure.
        name : str, default=None
            Name in the legend; None: that of the constructor.
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
        # The first few rows are noise: one early error would set the scale of the whole plot.
        coverage, risk = np.asarray(self.coverage), np.asarray(self.risk)
        top = max(1.1 * risk[coverage >= 0.05].max(), 0.01)
        if ax.lines:
            top = max(top, ax.get_ylim()[1])
        (self.line_,) = ax.plot(coverage, risk, **{"label": label, **kwargs})
        ax.set(xlabel="Coverage (share of rows answered)", ylabel="Risk (error rate)")
        ax.set(xlim=(0, 1), ylim=(0, top))
        if label is not None:
            ax.legend(loc="best", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self


class OODScoreDisplay:
    """Histograms of a score in and out of distribution.

    Use `from_estimator` or `from_predictions`. Further outlier sets, scored by the same method,
    join the plot when the axes of the first display are passed to them.

    Parameters
    ----------
    scores_in : array-like of shape (n_in,)
        Scores of in-distribution rows; larger = more like the training data.
    scores_out : array-like of shape (n_out,)
        Scores of out-of-distribution rows.
    auroc : float, default=None
        Shown in the legend.
    name : str, default=None
        Name of the outlier set in the legend.

    Attributes
    ----------
    in_, out_ : matplotlib Polygon
        The histograms; `in_` is None where the axes already showed one.
    edges_ : ndarray of shape (n_bins + 1,)
        Edges of their bins.
    ax_ : matplotlib Axes
        Their axes.
    figure_ : matplotlib Figure
        The figure.

    See Also
    --------
    out_of_distribution_auroc : The number in the legend.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_diffuq.metrics import OODScoreDisplay
    >>> rng = np.random.default_rng(0)
    >>> display = OODScoreDisplay.from_predictions(rng.normal(size=500), rng.normal(-2, size=300))
    """

    def __init__(self, scores_in, scores_out, *, auroc=None, name=None):
        self.scores_in = scores_in
        self.scores_out = scores_out
        self.auroc = auroc
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, X_in, X_out, **kwargs):
        """Plot the `score_samples` of a fitted estimator.

        Parameters
        ----------
        estimator : object
            Fitted estimator with `score_samples`.
        X_in : array-like
            In-distribution inputs.
        X_out : array-like
            Out-of-distribution inputs.
        **kwargs : dict
            Passed to `from_predictions`.

        Returns
        -------
        OODScoreDisplay
            The display, plotted.
        """
        scores = estimator.score_samples(X_in), estimator.score_samples(X_out)
        return cls.from_predictions(*scores, **kwargs)

    @classmethod
    def from_predictions(cls, scores_in, scores_out, *, name=None, ax=None, **kwargs):
        """Plot given scores.

        Parameters
        ----------
        scores_in : array-like of shape (n_in,)
            Scores of in-distribution rows; larger = more like the training data.
        scores_out : array-like of shape (n_out,)
            Scores of out-of-distribution rows.
        name : str, default=None
            Name of the outlier set in the legend; None: "Out-of-distribution".
        ax : matplotlib Axes, default=None
            Axes to plot on; None: a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        OODScoreDisplay
            The display, plotted.
        """
        auroc = out_of_distribution_auroc(scores_in, scores_out)
        return cls(scores_in, scores_out, auroc=auroc, name=name).plot(ax=ax, **kwargs)

    def plot(self, ax=None, *, name=None, bins=40):
        """Draw the histograms.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None: a new figure.
        name : str, default=None
            Name of the outlier set; None: that of the constructor.
        bins : int or ndarray of edges, default=40
            Bins of both histograms; scores outside are counted in the first and the last bin.
            An int divides the range of the middle 99% of all scores, so that a heavy tail does
            not squeeze the picture. For a further outlier set pass the `edges_` of the first.

        Returns
        -------
        OODScoreDisplay
            The display itself.
        """
        ax = axes_or_new(ax)
        name = self.name if name is None else name
        scores_in = check_scores(self.scores_in, "scores_in")
        scores_out = check_scores(self.scores_out, "scores_out")
        ends = [np.quantile(np.concatenate([scores_in, scores_out]), q) for q in (0.005, 0.995)]
        self.edges_ = np.histogram_bin_edges(ends, bins=bins)
        label = labelled(name or _OUT, None if self.auroc is None else f"AUROC {self.auroc:.3f}")
        self.in_ = None if has_label(ax, _IN) else self._histogram(ax, scores_in, _IN)
        self.out_ = self._histogram(ax, scores_out, label)
        ax.set(xlabel="Score (larger: more in-distribution)", ylabel="Density")
        ax.legend(loc="best", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _histogram(self, ax, scores, label):
        """Draw a density histogram in the next colour of the cycle, its face half transparent."""
        scores = np.clip(scores, self.edges_[0], self.edges_[-1])
        style = {"density": True, "histtype": "stepfilled", "linewidth": 1.5, "label": label}
        _, _, [patch] = ax.hist(scores, self.edges_, **style)
        color = patch.get_facecolor()
        patch.set(edgecolor=color, facecolor=(*color[:3], 0.3))
        return patch
