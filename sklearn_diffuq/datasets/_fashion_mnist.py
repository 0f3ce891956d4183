"""Fashion-MNIST from its IDX files."""

import struct

import numpy as np
from sklearn.utils import Bunch

from sklearn_diffuq.datasets._files import data_directory, read_gzip

_SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}
_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_N_TRAIN, _N_CALIBRATION = 20_000, 3_000
_MEAN, _STD = 0.286, 0.353


def fetch_fashion_mnist(data_home=None, *, normalize=False, verify=True):
    """Load Fashion-MNIST, split into training, calibration and test images.

    A fixed random split takes 20,000 training and 3,000 calibration images from the training file,
    each in file order. The test set is the complete test file.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that contains ``fashion-mnist/`` with the four ``*-ubyte.gz`` files. If None, the
        environment variable ``SKLEARN_DIFFUQ_DATA`` or else ``sklearn_diffuq`` in
        :func:`sklearn.datasets.get_data_home`.
    normalize : bool, default=False
        Standardise the pixels to mean 0 and standard deviation 1 over the training file. Otherwise
        they lie in [0, 1], as :func:`~sklearn_diffuq.datasets.corrupt_images` requires.
    verify : bool, default=True
        Whether to verify the SHA-256 of the unpacked files.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the attributes

        X_train, X_calibration, X_test : ndarray of shape (n, 1, 28, 28), float32
            Images: channels, rows, columns.
        y_train, y_calibration, y_test : ndarray of shape (n,), int64
            Class labels, 0 to 9.
        target_names : list of str
            Names of the ten classes.
        mean, std : float
            ``(X - mean) / std`` normalises images in [0, 1].
        DESCR : str
            Origin and licence.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names the folder and the source.
    ValueError
        If a file is not the expected one or not in the IDX format.

    See Also
    --------
    corrupt_images : Graded corruptions of these images.
    out_of_distribution_images : Out-of-distribution images of the same shape.

    References
    ----------
    .. [1] H. Xiao, K. Rasul and R. Vollgraf (2017). Fashion-MNIST: a novel image dataset for
       benchmarking machine learning algorithms. arXiv:1708.07747.

    Examples
    --------
    >>> from sklearn_diffuq.datasets import fetch_fashion_mnist
    >>> data = fetch_fashion_mnist()  # doctest: +SKIP
    >>> data.X_calibration.shape  # doctest: +SKIP
    (3000, 1, 28, 28)
    """
    directory = data_directory(data_home, "fashion-mnist")
    arrays = {
        name: _read_idx(directory / name, checksum if verify else None)
        for name, checksum in _SHA256.items()
    }
    train_images, train_labels, test_images, test_labels = arrays.values()
    rows = np.random.default_rng(0).permutation(len(train_images))
    train, rest = np.sort(rows[:_N_TRAIN]), np.sort(rows[_N_TRAIN:])
    calibration = np.sort(np.random.default_rng(1).permutation(rest)[:_N_CALIBRATION])

    def pixels(images):
        scaled = images[:, None].astype(np.float32) / np.float32(255)
        return (scaled - np.float32(_MEAN)) / np.float32(_STD) if normalize else scaled

    return Bunch(
        X_train=pixels(train_images[train]),
        y_train=train_labels[train].astype(np.int64),
        X_calibration=pixels(train_images[calibration]),
        y_calibration=train_labels[calibration].astype(np.int64),
        X_test=pixels(test_images),
        y_test=test_labels.astype(np.int64),
        target_names=list(_CLASSES),
        mean=_MEAN,
        std=_STD,
        DESCR=f"Fashion-MNIST, Zalando SE, MIT licence, arXiv:1708.07747. {_SOURCE}",
    )


def _read_idx(path, checksum):
    """Read one packed IDX file of unsigned bytes."""
    content = read_gzip(path, checksum, _SOURCE)
    zeros, kind, n_dimensions = struct.unpack(">HBB", content[:4])
    if zeros != 0 or kind != 0x08:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it starts with {content[:4].hex()}, "
            "expected 000008 and the number of dimensions."
        )
    start = 4 + 4 * n_dimensions
    shape = struct.unpack(f">{n_dimensions}I", content[4:start])
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
