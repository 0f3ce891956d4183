"""Axes for displays: the only place that imports matplotlib's state machine, and only to plot."""


def axes_or_new(ax):
    """Return `ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Displays need matplotlib: pip install matplotlib.") from error
    return plt.subplots(layout="constrained")[1]


def text_color(ax):
    """Colour of the axis labels: visible on the background, whatever the style."""
    return ax.xaxis.label.get_color()


def has_label(ax, label):
    """Tell whether an artist of `ax` already stands in the legend as `label`."""
    return label in ax.get_legend_handles_labels()[1]


def labelled(name, text):
    """Join the name of a method and a score for the legend; None where there is neither."""
    if name is None or text is None:
        return name or text
    return f"{name} ({text})"


def integer_ticks(ax):
    """Put the ticks of the horizontal axis at integers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
