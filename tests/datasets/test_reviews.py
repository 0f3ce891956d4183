"""Rated reviews: columns, labels, ratings and the split."""

import csv
import gzip
import io

import numpy as np
import pytest

from sklearn_diffuq.datasets import fetch_amazon_reviews, fetch_movie_reviews

FETCH = {"movie_reviews": fetch_movie_reviews, "amazon_reviews": fetch_amazon_reviews}
ROWS = [
    ("1", "2.0", "4 0 2 2", 'A "quoted", café review.\nOn two lines.'),
    ("2", "-1.5", "-3 0 0 -3", "Bad."),
    ("3", "0.0", "", "Nobody's ratings."),
]


@pytest.fixture(params=FETCH)
def fetched(request, tmp_path):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("id", "mean_rating", "ratings", "text"), *ROWS])
    path = tmp_path / "movie-reviews" / f"{request.param}.csv.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(stream.getvalue().encode()))
    return FETCH[request.param](tmp_path, verify=False)


def test_columns(fetched):
    assert fetched.text.tolist() == [row[3] for row in ROWS]
    assert fetched.target.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(fetched.mean_rating, [2.0, -1.5, 0.0])
    assert [r.tolist() for r in fetched.ratings] == [[4, 0, 2, 2], [-3, 0, 0, -3], []]
    # Three of four raters positive and one neutral; two of four neutral; no raters.
    np.testing.assert_allclose(fetched.positive_share, [3.5 / 4, 1 / 4, np.nan])


@pytest.mark.parametrize("name", FETCH)
def test_missing_file_says_what_to_do(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{name}\.csv\.gz.*Public source: https://"):
        FETCH[name](tmp_path)


def test_real_movie_reviews(shared):
    data = fetch_movie_reviews(shared / "data")
    assert len(data.text) == len(data.target) == len(data.ratings) == 10_605
    assert all(isinstance(text, str) for text in data.text)
    split = np.load(shared / "data" / "movie-reviews" / "split.npz")
    for name in ("train", "calibration", "test"):
        np.testing.assert_array_equal(data[name], split[name])
    # The published mean is the mean of the published ratings.
    means = [r.mean() for r in data.ratings]
    assert np.mean(np.abs(means - data.mean_rating) < 0.01) > 0.99


def test_real_amazon_reviews(shared):
    data = fetch_amazon_reviews(shared / "data")
    assert len(data.text) == 3_708
    assert set(data.target) == {0, 1}
    assert "train" not in data
