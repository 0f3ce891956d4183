"""Real data with held-out splits, and ways to move them away from what a model has seen.

Nothing here needs torch. The ``fetch_*`` functions read files that the user has put into
``data_home`` and check that they are the ones the documented results were made with.
"""

from sklearn_diffuq.datasets._corruptions import corrupt_images, corrupt_texts
from sklearn_diffuq.datasets._images import fetch_fashion_mnist
from sklearn_diffuq.datasets._out_of_distribution import out_of_distribution_images
from sklearn_diffuq.datasets._reviews import fetch_amazon_reviews, fetch_movie_reviews

__all__ = [
    "corrupt_images",
    "corrupt_texts",
    "fetch_amazon_reviews",
    "fetch_fashion_mnist",
    "fetch_movie_reviews",
    "out_of_distribution_images",
]
