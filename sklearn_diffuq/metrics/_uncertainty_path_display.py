"""Plot of the state variance along the diffusion path."""

import numpy as np

from sklearn_diffuq.metrics._axes import axes_or_new, integer_ticks, text_color


class UncertaintyPathDisplay:
    """State variance along the diffusion path: median over samples, and a quantile band.

    Where all of it is zero, the axes say that the path has no noise.

    Parameters
    ----------
    path_variance : array-like of shape (n_samples, n_steps)
        Variance of every sample at every step.
    name : str, default=None
        Name of the samples in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The median.
    band_ : matplotlib PolyCollection
        The band.
    ax_ : matplotlib Axes
        Their axes.
    figure_ : matplotlib Figure
        The figure.

    See Also
    --------
    DiffusionStepDisplay : A score against the number of steps.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_diffuq.metrics import UncertaintyPathDisplay
    >>> steps = np.random.default_rng(0).gamma(5, size=(200, 6)) * np.arange(1, 7)
    >>> display = UncertaintyPathDisplay.from_predictions(steps, name="clean")
    >>> _ = UncertaintyPathDisplay.from_predictions(3 * steps, name="noisy", ax=display.ax_)
    """

    def __init__(self, path_variance, *, name=None):
        self.path_variance = path_variance
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, X, **kwargs):
        """Plot the variance reported by a fitted `DiffusionCalibratedClassifier`.

        Parameters
        ----------
        estimator : object
            Fitted estimator whose `predict_uncertainty` returns `path_variance`.
        X : array-like
            Inputs that the estimator accepts.
        **kwargs : dict
            Passed to `from_predictions`.

        Returns
        -------
        UncertaintyPathDisplay
            The display, plotted.
        """
        return cls.from_predictions(estimator.predict_uncertainty(X).path_variance, **kwargs)

    @classmethod
    def from_predictions(cls, path_variance, *, name=None, ax=None, **kwargs):
        """Plot given variances.

        Parameters
        ----------
        path_variance : array-like of shape (n_samples, n_steps)
            Variance of every sample at every step.
        name : str, default=None
            Name of the samples in the legend.
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        UncertaintyPathDisplay
            The display, plotted.
        """
        return cls(path_variance, name=name).plot(ax=ax, **kwargs)

    def plot(self, ax=None, *, name=None, quantiles=(0.1, 0.9), **kwargs):
        """Draw the median and the band.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure.
        name : str, default=None
            Name in the legend; if None, that of the constructor.
        quantiles : tuple of two floats, default=(0.1, 0.9)
            Quantiles over samples that bound the band.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        UncertaintyPathDisplay
            The display itself.
        """
        variance = np.asarray(self.path_variance, dtype=np.float64)
        if variance.ndim != 2 or not variance.size:
            raise ValueError(
                f"path_variance must have shape (n_samples, n_steps), got {variance.shape}."
            )
        ax = axes_or_new(ax)
        name = self.name if name is None else name
        steps = np.arange(1, variance.shape[1] + 1)
        low, middle, high = np.quantile(variance, [quantiles[0], 0.5, quantiles[1]], axis=0)
        style = {"marker": "o", "markersize": 4, "label": name, **kwargs}
        (self.line_,) = ax.plot(steps, middle, **style)
        self.band_ = ax.fill_between(
            steps, low, high, color=self.line_.get_color(), alpha=0.2, linewidth=0
        )
        ax.set(xlabel="Diffusion step", ylabel="State variance")
        integer_ticks(ax)
        if not variance.any():
            ax.annotate(
                "zero: the path has no noise",
                (0.5, 0.6),
                xycoords="axes fraction",
                ha="center",
                color=text_color(ax),
            )
        if name is not None:
            ax.legend(loc="best", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self
