"""Graded corruptions of images, deterministic given a seed."""

import numpy as np
from scipy import ndimage
from sklearn.utils import check_random_state

from sklearn_diffuq.datasets._severity import strength_of

# One strength per severity 1..5; the unit depends on the corruption.
_STRENGTHS = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "blur": (0.5, 0.75, 1.0, 1.5, 2.0),  # standard deviation of the kernel, pixels
    "rotate": (10.0, 20.0, 30.0, 45.0, 60.0),  # degrees
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor on the deviation from the mean
    "translate": (0.07, 0.11, 0.14, 0.21, 0.29),  # share of the width and height
}


def corrupt_images(X, corruption, severity=3, *, random_state=None):
    """Corrupt images with a given kind and severity.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_channels, height, width)
        Images with pixels in [0, 1].
    corruption : {"noise", "blur", "rotate", "contrast", "translate"}
        - "noise": independent Gaussian noise on every pixel, standard deviation 0.08 to 0.38.
        - "blur": Gaussian kernel, standard deviation 0.5 to 2 pixels.
        - "rotate": by 10 to 60 degrees about the centre, clockwise or anticlockwise at random.
        - "contrast": deviations from the mean of the image are multiplied by 0.75 to 0.15.
        - "translate": by 7% to 29% of the side length in a random direction, in whole pixels.

        Pixels from outside the image are 0.
    severity : int, default=3
        From 1 (mild) to 5 (severe).
    random_state : int, RandomState instance or None, default=None
        Seed of the random draws; pass an int for reproducible results.

    Returns
    -------
    X_corrupted : ndarray of shape (n_samples, n_channels, height, width)
        Pixels in [0, 1], float32 for float32 input and float64 otherwise.

    Raises
    ------
    ValueError
        If `X` has another shape or pixels outside [0, 1], or for an unknown corruption or severity.

    See Also
    --------
    out_of_distribution_images : Images without any class of the training data.

    References
    ----------
    .. [1] D. Hendrycks and T. Dietterich (2019). Benchmarking neural network robustness to common
       corruptions and perturbations. ICLR.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_diffuq.datasets import corrupt_images
    >>> X = np.zeros((1, 1, 4, 4))
    >>> X[0, 0, :, 2:] = 1
    >>> corrupt_images(X, "contrast", severity=2)[0, 0, 0]
    array([0.25, 0.25, 0.75, 0.75])
    """
    X = check_images(X)
    strength = strength_of(_STRENGTHS, corruption, severity)
    rng = check_random_state(random_state)
    if corruption == "noise":
        corrupted = X + strength * rng.standard_normal(X.shape)
    elif corruption == "blur":
        corrupted = ndimage.gaussian_filter(X, (0, 0, strength, strength), mode="constant")
    elif corruption == "rotate":
        corrupted = _rotate(X, strength, rng)
    elif corruption == "contrast":
        mean = X.mean(axis=(1, 2, 3), keepdims=True)
        corrupted = mean + strength * (X - mean)
    else:
        corrupted = _translate(X, strength, rng)
    return np.clip(corrupted, 0, 1).astype(X.dtype)


def check_images(X):
    """Return `X` as a float array after checking its shape and range."""
    X = np.asarray(X)
    if X.dtype != np.float32:
        X = X.astype(np.float64)
    if X.ndim != 4:
        raise ValueError(
            "Images must have the shape (n_samples, n_channels, height, width), got an array of "
            f"shape {X.shape}. Add the channel axis with X[:, None] where there is none."
        )
    if X.size and not (X.min() >= 0 and X.max() <= 1):
        raise ValueError(
            f"Pixels must lie in [0, 1], got values between {X.min():.3g} and {X.max():.3g}. "
            "Corrupt the images first and normalise them afterwards."
        )
    return X


def _rotate(X, degrees, rng):
    left = rng.randint(2, size=len(X)) == 1
    rotated = np.empty_like(X)
    for rows, angle in ((left, degrees), (~left, -degrees)):
        rotated[rows] = ndimage.rotate(X[rows], angle, axes=(3, 2), reshape=False, order=1)
    return rotated


def _translate(X, share, rng):
    height, width = X.shape[2:]
    angle = rng.uniform(0, 2 * np.pi, size=len(X))
    down = np.round(share * height * np.sin(angle)).astype(int)
    right = np.round(share * width * np.cos(angle)).astype(int)
    margin = int(np.ceil(share * max(height, width))) + 1
    padded = np.pad(X, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    row = (margin + np.arange(height) - down[:, None])[:, None, :, None]
    column = (margin + np.arange(width) - right[:, None])[:, None, None, :]
    sample = np.arange(len(X))[:, None, None, None]
    channel = np.arange(X.shape[1])[None, :, None, None]
    return padded[sample, channel, row, column]
