"""Short reviews with the ratings of many readers, from CSV files."""

import csv
import io

import numpy as np
from sklearn.utils import Bunch

from sklearn_diffuq.datasets._files import data_directory, read_gzip

_SOURCE = (
    "https://github.com/cjhutto/vaderSentiment (hutto_ICWSM_2014: the *_GroundTruth.txt and "
    "*_anonDataRatings.txt files, joined into one CSV file with the columns id, mean_rating, "
    "ratings separated by blanks, and text)"
)
_SHA256 = {
    "movie_reviews.csv.gz": "00f61f704d7f93c33ffd17b9d7a48bd825cab8098dece43b91046ad402719f80",
    "amazon_reviews.csv.gz": "f129cba05e8837ab338152194c33c114594c49094d1030c58895acc7a76b424a",
}
_N_TRAIN, _N_CALIBRATION = 6_000, 1_500


def fetch_movie_reviews(data_home=None, *, verify=True):
    """Load snippets of movie reviews with the ratings of their readers.

    The label says whether the mean rating is positive. The individual ratings show how far readers
    disagree, and hence how uncertain a model should be.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that contains ``movie-reviews/movie_reviews.csv.gz``. If None, the environment
        variable ``SKLEARN_DIFFUQ_DATA`` or else ``sklearn_diffuq`` in
        :func:`sklearn.datasets.get_data_home`.
    verify : bool, default=True
        Whether to verify the SHA-256 of the unpacked file.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the attributes

        text : ndarray of shape (n,), object
            The snippets, str.
        target : ndarray of shape (n,), int64
            1 if the mean rating is positive, else 0.
        mean_rating : ndarray of shape (n,), float64
            Between -4 (most negative) and 4.
        ratings : ndarray of shape (n,), object
            The individual ratings of each snippet, an integer array; empty if unknown.
        positive_share : ndarray of shape (n,), float64
            Share of positive ratings, with ratings of 0 counted as one half; nan if there are no
            ratings.
        train, calibration, test : ndarray of int
            Disjoint indices of a fixed split: 6,000, 1,500 and the remaining samples.
        DESCR : str
            Origin and licence.

    Raises
    ------
    FileNotFoundError
        If the file is missing; the message names the folder and the source.
    ValueError
        If the file is not the expected one.

    See Also
    --------
    fetch_amazon_reviews : Product reviews with the same labels.

    References
    ----------
    .. [1] C. J. Hutto and E. Gilbert (2014). VADER: a parsimonious rule-based model for sentiment
       analysis of social media text. ICWSM.

    Examples
    --------
    >>> from sklearn_diffuq.datasets import fetch_movie_reviews
    >>> data = fetch_movie_reviews()  # doctest: +SKIP
    >>> X_train, y_train = data.text[data.train], data.target[data.train]  # doctest: +SKIP
    """
    data = _load("movie_reviews.csv.gz", data_home, verify)
    rows = np.random.default_rng(0).permutation(len(data.text))
    data.train, data.calibration, data.test = np.split(rows, [_N_TRAIN, _N_TRAIN + _N_CALIBRATION])
    return data


def fetch_amazon_reviews(data_home=None, *, verify=True):
    """Load snippets of product reviews: domain shift for a model trained on movie reviews.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that contains ``movie-reviews/amazon_reviews.csv.gz``. If None, the environment
        variable ``SKLEARN_DIFFUQ_DATA`` or else ``sklearn_diffuq`` in
        :func:`sklearn.datasets.get_data_home`.
    verify : bool, default=True
        Whether to verify the SHA-256 of the unpacked file.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        As returned by :func:`fetch_movie_reviews`, without a split.

    Raises
    ------
    FileNotFoundError
        If the file is missing; the message names the folder and the source.
    ValueError
        If the file is not the expected one.

    See Also
    --------
    fetch_movie_reviews : Describes the attributes.

    Examples
    --------
    >>> from sklearn_diffuq.datasets import fetch_amazon_reviews
    >>> data = fetch_amazon_reviews()  # doctest: +SKIP
    """
    return _load("amazon_reviews.csv.gz", data_home, verify)


def _load(name, data_home, verify):
    """Read one CSV file of rated texts."""
    path = data_directory(data_home, "movie-reviews") / name
    content = read_gzip(path, _SHA256[name] if verify else None, _SOURCE)
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))
    mean_rating = np.array([float(row["mean_rating"]) for row in rows])
    ratings = _objects([np.array(row["ratings"].split(), dtype=np.int64) for row in rows])
    return Bunch(
        text=_objects([row["text"] for row in rows]),
        target=(mean_rating > 0).astype(np.int64),
        mean_rating=mean_rating,
        ratings=ratings,
        positive_share=np.array([_positive_share(r) for r in ratings]),
        DESCR=f"Rated review snippets, Hutto and Gilbert (2014), MIT licence. {_SOURCE}",
    )


def _positive_share(ratings):
    return np.mean((np.sign(ratings) + 1) / 2) if len(ratings) else np.nan


def _objects(values):
    """Return a one-dimensional object array, even if all values are arrays of one length."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array
