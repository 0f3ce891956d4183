"""Plot of a score against the number of diffusion steps."""

import numpy as np

from sklearn_diffuq.metrics._axes import axes_or_new, has_label, integer_ticks, text_color

_REFERENCE = "Wrapped model"


class DiffusionStepDisplay:
    """A score against the number of diffusion steps.

    Parameters
    ----------
    n_steps : array-like of shape (n_values,)
        Numbers of steps.
    scores : array-like of shape (n_values,) or (n_values, n_repeats)
        The score for each number of steps. With repeats (seeds, folds), the mean and a band of one
        standard deviation are drawn.
    score_name : str, default="Score"
        Label of the vertical axis.
    reference : float, default=None
        Score of the wrapped model, drawn as a dashed line; if None, no line is drawn.
    name : str, default=None
        Name of the method in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The mean score.
    band_ : matplotlib PolyCollection or None
        The band; None without repeats.
    ax_ : matplotlib Axes
        Their axes.
    figure_ : matplotlib Figure
        The figure.

    See Also
    --------
    UncertaintyPathDisplay : State variance along the path.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import DiffusionStepDisplay
    >>> display = DiffusionStepDisplay.from_predictions(
    ...     [2, 4, 8], [[0.41, 0.43], [0.37, 0.39], [0.36, 0.37]],
    ...     score_name="Log loss", reference=0.4)
    """

    def __init__(self, n_steps, scores, *, score_name="Score", reference=None, name=None):
        self.n_steps = n_steps
        self.scores = scores
        self.score_name = score_name
        self.reference = reference
        self.name = name

    @classmethod
    def from_predictions(
        cls, n_steps, scores, *, score_name="Score", reference=None, name=None, ax=None, **kwargs
    ):
        """Plot given scores.

        Parameters
        ----------
        n_steps : array-like of shape (n_values,)
            Numbers of steps, in any order.
        scores : array-like of shape (n_values,) or (n_values, n_repeats)
            The score for each number of steps.
        score_name : str, default="Score"
            Label of the vertical axis.
        reference : float, default=None
            Score of the wrapped model, drawn as a dashed line; if None, no line is drawn.
        name : str, default=None
            Name of the method in the legend.
        ax : matplotlib Axes, default=None
            Axes to plot on; if None, those of a new figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        DiffusionStepDisplay
            The display, plotted.
        """
        display = cls(n_steps, scores, score_name=score_name, reference=reference, name=name)
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax=None, *, name=None, **kwargs):
        """Draw the curve.

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
        DiffusionStepDisplay
            The display itself.
        """
        n_steps = np.asarray(self.n_steps)
        scores = np.asarray(self.scores, dtype=np.float64)
        if n_steps.ndim != 1 or scores.ndim not in (1, 2) or len(scores) != len(n_steps):
            raise ValueError(
                "scores must have shape (n_values,) or (n_values, n_repeats) with one row per"
                f" number of steps, got {scores.shape} for n_steps of shape {n_steps.shape}."
            )
        ax = axes_or_new(ax)
        name = self.name if name is None else name
        order = np.argsort(n_steps)
        n_steps, scores = n_steps[order], scores[order].reshape(len(n_steps), -1)
        mean = scores.mean(axis=1)
        style = {"marker": "o", "markersize": 4, "label": name, **kwargs}
        (self.line_,) = ax.plot(n_steps, mean, **style)
        self.band_ = None
        if scores.shape[1] > 1:
            spread = scores.std(axis=1, ddof=1)
            band = {"color": self.line_.get_color(), "alpha": 0.2, "linewidth": 0}
            self.band_ = ax.fill_between(n_steps, mean - spread, mean + spread, **band)
        if self.reference is not None and not has_label(ax, _REFERENCE):
            style = {"linestyle": "--", "linewidth": 1, "color": text_color(ax), "alpha": 0.6}
            ax.axhline(self.reference, label=_REFERENCE, **style)
        ax.set(xlabel="Number of diffusion steps", ylabel=self.score_name)
        integer_ticks(ax)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="best", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self
