"""Real data sets with fixed splits, corruptions, and out-of-distribution images.

Nothing here needs torch. The ``fetch_*`` functions read files that you have placed in ``data_home``
and verify that they are those used for the documented results.
"""

from sklearn_diffuq.datasets._fashion_mnist import fetch_fashion_mnist
from sklearn_diffuq.datasets._image_corruptions import corrupt_images
from sklearn_diffuq.datasets._out_of_distribution import out_of_distribution_images
from sklearn_diffuq.datasets._reviews import fetch_amazon_reviews, fetch_movie_reviews
from sklearn_diffuq.datasets._text_corruptions import corrupt_texts

__all__ = [
    "corrupt_images",
    "corrupt_texts",
    "fetch_amazon_reviews",
    "fetch_fashion_mnist",
    "fetch_movie_reviews",
    "out_of_distribution_images",
]
