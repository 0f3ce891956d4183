"""Calibration error by kernel smoothing, without bins."""

import numpy as np
from scipy.signal import fftconvolve
from sklearn.utils._param_validation import StrOptions, validate_params

from sklearn_diffuq.metrics._binning import confidence_outcome_pairs
from sklearn_diffuq.metrics._probabilities import encode_labels

# Discretisation of the authors' implementation, so that values match published ones.
_SMALLEST_WIDTH = 1e-3
_HALVINGS = 10
_DENSITY_FLOOR = 1e-4


@validate_params(
    {
        "y_true": ["array-like"],
        "y_proba": ["array-like"],
        "labels": ["array-like", None],
        "kind": [StrOptions({"top-label", "positive"})],
    },
    prefer_skip_nested_validation=True,
)
def smooth_calibration_error(y_true, y_proba, *, labels=None, kind="top-label", pos_label=None):
    r"""Smooth calibration error (smECE) of Błasiok and Nakkiran.

    With outcomes :math:`a_i` at confidences :math:`f_i` and a Gaussian kernel of width
    :math:`\sigma`, reflected at 0 and 1,

    .. math:: \mathrm{smECE}_\sigma = \int_0^1 \Big| \frac1n \sum_i K_\sigma(t, f_i)
        (f_i - a_i) \Big| \, dt,

    at the width for which :math:`\mathrm{smECE}_\sigma = \sigma`. It needs no choice of bins, is
    continuous in the confidences, and reproduces ``relplot.smECE`` with the reflected kernel, the
    authors' default, including its grid and search.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities; if one-dimensional, those of `pos_label`.
    labels : array-like of shape (n_classes,), default=None
        The label of each column. If None, the sorted distinct values of `y_true`.
    kind : {"top-label", "positive"}, default="top-label"
        Which probability is evaluated: that of the predicted label against whether it is correct,
        or the column of `pos_label`.
    pos_label : int, float, bool or str, default=None
        The label of a one-dimensional `y_proba` and of ``kind="positive"``. If None, the greater
        one.

    Returns
    -------
    float
        The error, in [0, 1].

    Raises
    ------
    ValueError
        If labels and columns do not match or `y_proba` does not hold probabilities.

    See Also
    --------
    expected_calibration_error : The binned error.

    References
    ----------
    .. [1] Błasiok and Nakkiran, "Smooth ECE: Principled Reliability Diagrams via Kernel
       Smoothing", ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_diffuq.metrics import smooth_calibration_error
    >>> y_proba = np.tile([0.7, 0.3], (100, 1))
    >>> y_true = np.repeat([0, 1], [50, 50])
    >>> round(smooth_calibration_error(y_true, y_proba), 2)
    0.2
    """
    codes, proba, labels = encode_labels(y_true, y_proba, labels, pos_label)
    [(confidence, outcome)] = confidence_outcome_pairs(codes, proba, labels, kind, pos_label)
    order = np.lexsort((outcome, confidence))
    confidence, residual = confidence[order], (confidence - outcome)[order]
    narrow, wide = 0.0, 1.0
    for _ in range(_HALVINGS):
        width = (narrow + wide) / 2
        if width < _SMALLEST_WIDTH or width < _error_at_width(confidence, residual, width):
            narrow = width
        else:
            wide = width
    return _error_at_width(confidence, residual, wide)


def _error_at_width(confidence, residual, width):
    n_grid = max(2000, round(20 / width)) // 2 + 1
    sums = np.stack([residual, np.ones_like(residual)])
    smoothed = _reflected_gaussian(_spread_on_grid(confidence, sums, n_grid), width)
    n_mesh = max(200, round(10 / width))
    mesh, grid = np.linspace(0, 1, n_mesh), np.linspace(0, 1, n_grid)
    excess, density = (np.interp(mesh, grid, values) for values in smoothed)
    # The floor suppresses regions without data; elsewhere it is negligible.
    density = density + _DENSITY_FLOOR
    return float(np.abs(excess).sum() / density.sum())


def _spread_on_grid(position, sums, n_grid):
    """Distribute each value (2, n) linearly over the two nearest of `n_grid` points."""
    scaled = position * (n_grid - 1)
    left = np.minimum(scaled.astype(int), n_grid - 2)
    part = scaled - left
    return np.stack(
        [
            np.bincount(left, weights=values * (1 - part), minlength=n_grid)
            + np.bincount(left + 1, weights=values * part, minlength=n_grid)
            for values in sums
        ]
    )


def _reflected_gaussian(values, width):
    """Smooth values (2, n_grid) on a grid of [0, 1], reflected at both ends."""
    n_grid = values.shape[1]
    offset = np.linspace(-0.5, 0.5, n_grid)
    kernel = np.exp(-0.5 * (offset / width) ** 2) / (np.sqrt(2 * np.pi) * width)
    mirrored = np.pad(values, ((0, 0), (n_grid - 1, n_grid - 1)), mode="reflect")
    start = n_grid // 2
    return fftconvolve(mirrored, kernel[None], "valid", axes=1)[:, start : start + n_grid]
