"""Axes, colours and legends of displays; pyplot is imported here only, and only to plot."""


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
    """Return the colour of the axis labels, which is visible on the background of any style."""
    return ax.xaxis.label.get_color()


def has_label(ax, label):
    """Return whether the legend of `ax` has an entry `label`."""
    return label in ax.get_legend_handles_labels()[1]


def labelled(name, text):
    """Join the name of a method and a score into a legend entry; None if both are missing."""
    if name is None or text is None:
        return name or text
    return f"{name} ({text})"


def integer_ticks(ax):
    """Restrict the ticks of the horizontal axis to integers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
