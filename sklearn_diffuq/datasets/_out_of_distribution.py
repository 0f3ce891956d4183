"""Out-of-distribution images: none shows a class of the training data."""

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images
from sklearn.utils import check_random_state

from sklearn_diffuq.datasets._image_corruptions import check_images

_KINDS = ("digits", "inverted", "shuffled", "blank", "saturated", "letters", "photographs")


def out_of_distribution_images(X, kind, *, random_state=None):
    """Make out-of-distribution images of the same shape as `X`.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_channels, height, width)
        Images with pixels in [0, 1].
    kind : {"digits", "inverted", "shuffled", "blank", "saturated", "letters", "photographs"}
        - "digits": handwritten digits of :func:`sklearn.datasets.load_digits`, enlarged to the
          size of `X`, in random order, repeated if `X` has more samples.
        - "inverted": ``1 - X``.
        - "shuffled": the pixels of each image in random order, with the histogram unchanged.
        - "blank": all pixels 0.
        - "saturated": all pixels 1.
        - "letters": a white printed letter, A to Z, of random size, centred on black.
        - "photographs": random square crops of the two photographs of
          :func:`sklearn.datasets.load_sample_images`, in grey, resized to the size of `X`.
    random_state : int, RandomState instance or None, default=None
        Seed of the random draws; pass an int for reproducible results.

    Returns
    -------
    X_out : ndarray of shape (n_samples, n_channels, height, width)
        Pixels in [0, 1], float32 for float32 input and float64 otherwise.

    Raises
    ------
    ValueError
        If `X` has another shape or pixels outside [0, 1], or if `kind` is unknown.

    See Also
    --------
    corrupt_images : Images of the same classes, degraded.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_diffuq.datasets import out_of_distribution_images
    >>> out_of_distribution_images(np.zeros((5, 1, 28, 28)), "digits", random_state=0).shape
    (5, 1, 28, 28)
    """
    X = check_images(X)
    rng = check_random_state(random_state)
    if kind == "digits":
        return _digits(X.shape, rng).astype(X.dtype)
    if kind == "inverted":
        return 1 - X
    if kind == "shuffled":
        order = rng.random_sample((len(X), 1, X[0, 0].size)).argsort(axis=2)
        flat = X.reshape(*X.shape[:2], -1)
        return np.take_along_axis(flat, order, axis=2).reshape(X.shape)
    if kind == "blank":
        return np.zeros_like(X)
    if kind == "saturated":
        return np.ones_like(X)
    if kind in ("letters", "photographs"):
        make = _letter if kind == "letters" else _photograph_crops()
        images = np.stack([make(X.shape[2:], rng) for _ in X])
        return np.repeat(images[:, None], X.shape[1], axis=1).astype(X.dtype)
    raise ValueError(f"kind must be one of {list(_KINDS)}, got {kind!r}.")


def _digits(shape, rng):
    n_samples, n_channels, height, width = shape
    digits = load_digits().images / 16
    rows = np.resize(rng.permutation(len(digits)), n_samples)
    zoom = (1, height / digits.shape[1], width / digits.shape[2])
    enlarged = np.clip(ndimage.zoom(digits[rows], zoom, order=1), 0, 1)
    return np.repeat(enlarged[:, None], n_channels, axis=1)


def _letter(shape, rng):
    from PIL import Image, ImageDraw, ImageFont

    height, width = shape
    font = ImageFont.load_default(rng.uniform(0.7, 1.1) * min(shape))
    image = Image.new("L", (width, height))
    letter = chr(ord("A") + rng.randint(26))
    ImageDraw.Draw(image).text((width / 2, height / 2), letter, 255, font, anchor="mm")
    return np.asarray(image) / 255


def _photograph_crops():
    """Return a function that cuts a random square out of a photograph."""
    photographs = [image.mean(axis=2) / 255 for image in load_sample_images().images]

    def crop(shape, rng):
        photograph = photographs[rng.randint(len(photographs))]
        side = rng.randint(28, 201)
        top, left = (rng.randint(size - side + 1) for size in photograph.shape)
        square = photograph[top : top + side, left : left + side]
        zoom = [size / side for size in shape]
        return np.clip(ndimage.zoom(square, zoom, order=1, mode="nearest"), 0, 1)

    return crop
