"""Histograms of a score in and out of distribution."""

import numpy as np

from sklearn_diffuq.metrics._axes import axes_or_new, has_label, labelled
from sklearn_diffuq.metrics._detection import check_scores, out_of_distribution_auroc

_IN = "In-distribution"
_OUT = "Out-of-distribution"


class OODScoreDisplay:
    """Histograms of a score in and out of distribution.

    Create displays with `from_estimator` or `from_predictions`. To add further outlier sets scored
    by the same method, pass them the axes of the first display.

    Parameters
    ----------
    scores_in : array-like of shape (n_in,)
        Scores of in-distribution samples; larger means more like the training data.
    scores_out : array-like of shape (n_out,)
        Scores of out-of-distribution samples.
    auroc : float, default=None
        AUROC shown in the legend; if None, none is shown.
    name : str, default=None
        Name of the outlier set in the legend.

    Attributes
    ----------
    in_, out_ : matplotlib Polygon
        The histograms; `in_` is None if the axes already contained it.
    edges_ : ndarray of shape (n_bins + 1,)
        Bin edges of both.
    ax_ : matplotlib Axes
        Their axes.
    figure_ : matplotlib Figure
        The figure.

    See Also
    --------
    out_of_distribution_auroc : The AUROC in the legend.

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
            Scores of in-distribution samples; larger means more like the training data.
        scores_out : array-like of shape (n_out,)
            Scores of out-of-distribution samples.
        name : str, default=None
            Name of the outlier set in the legend; if None, "Out-of-distribution".
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure.
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
            Axes to plot on; if None, those of a new figure.
        name : str, default=None
            Name of the outlier set; if None, that of the constructor.
        bins : int or ndarray of edges, default=40
            Bins of both histograms; scores outside are counted in the first or last bin. An int
            divides the range of the central 99% of all scores, so that heavy tails do not
            compress the plot. For a further outlier set, pass the `edges_` of the first.

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
        """Draw a semi-transparent density histogram in the next colour of the cycle."""
        scores = np.clip(scores, self.edges_[0], self.edges_[-1])
        style = {"density": True, "histtype": "stepfilled", "linewidth": 1.5, "label": label}
        _, _, [patch] = ax.hist(scores, self.edges_, **style)
        color = patch.get_facecolor()
        patch.set(edgecolor=color, facecolor=(*color[:3], 0.3))
        return patch
