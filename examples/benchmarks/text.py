"""Movie reviews and a MiniLM of 6 blocks: in distribution, other products, corrupted, and raters.

    python examples/benchmarks/text.py --quick
    python examples/benchmarks/text.py

All methods get the same 1,500 calibration texts and are judged on the 3,105 test texts, on 3,000
reviews of products, and on 300 test texts with typos or without some of their words. Each of them
was rated by about twenty people; "raters kl" is the divergence of the predicted probabilities from
the shares of the raters who found it positive or negative, a rating of 0 counting one half for
each. Seeds change the training of the methods and the draws of the corruptions; the model and the
split are the same.

The data are read from the folder that ``SKLEARN_DIFFUQ_DATA`` names (see
`sklearn_diffuq.datasets.fetch_movie_reviews`); the model lies in ``../models/minilm-movie-reviews``
beside it.
"""

import sys
from functools import partial

import numpy as np
import torch
from harness import Part, Problem, benchmark, model_path, parse
from methods import CHEAP, registry
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sklearn_diffuq import TransformerClassifier
from sklearn_diffuq.datasets import corrupt_texts, fetch_amazon_reviews, fetch_movie_reviews

CORRUPTIONS = ("typos", "drop_words")
FULL = {"train": 6_000, "calibration": 1_500, "test": 3_105, "products": 3_000, "shift": 300}
QUICK = {"train": 400, "calibration": 400, "test": 300, "products": 200, "shift": 40}
QUICK_UNIFIED = {"rank": None}  # what "auto" takes on all rows, without trying several
QUICK_TRAINING = {"max_epochs": 1}
# The model has seen its training texts for epochs. With label smoothing, the loss of the
# calibration texts in `history_` is lower after one more epoch than after any of three (seed 0).
FINE_TUNED = ("label smoothing", "deep ensemble", "SGPA", "KEP-SVGP")
RIVALS = {name: {"max_epochs": 1} for name in FINE_TUNED}


def load_classifier():
    """Return the fine-tuned MiniLM as a classifier; `fit` trains nothing."""
    path = model_path("minilm-movie-reviews")
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    return TransformerClassifier(model, preprocessor=AutoTokenizer.from_pretrained(path))


def rated(name, data, rows):
    """Return the part of some rows of a data set, with the shares of the raters."""
    positive = data.positive_share[rows]
    shares = np.column_stack([1 - positive, positive])
    return Part(name, lambda: data.text[rows], data.target[rows], shares=shares)


def load(seed, n_rows):
    """Return the problem of a seed with the given numbers of rows."""
    movies, amazon = fetch_movie_reviews(), fetch_amazon_reviews()
    train, calibration = (
        (movies.text[rows], movies.target[rows])
        for rows in (movies[name][: n_rows[name]] for name in ("train", "calibration"))
    )
    # Sentences of one product follow each other: take them from all over the file.
    products = np.random.default_rng(0).permutation(len(amazon.text))[: n_rows["products"]]
    parts = [rated("test", movies, movies.test[: n_rows["test"]])]
    parts.append(rated("product reviews", amazon, products))
    shifted = movies.test[: n_rows["shift"]]
    for name in CORRUPTIONS:
        for severity in (1, 2, 3, 4, 5):
            make = partial(corrupt_texts, movies.text[shifted], name, severity, random_state=seed)
            parts.append(Part(name.replace("_", " "), make, movies.target[shifted], severity))
    return Problem(load_classifier(), train, calibration, parts)


def main():
    """Run the benchmark."""
    # At full rank, the blockwise path is the same as the other.
    cheap = [method for method in CHEAP if method != "diffusion, blockwise"]
    options = parse(__doc__.splitlines()[0], list(registry()), cheap=cheap)
    n_rows = QUICK if options.quick else FULL
    methods = (
        registry(QUICK_UNIFIED, **QUICK_TRAINING) if options.quick else registry(rivals=RIVALS)
    )
    problems = {"Movie reviews": partial(load, n_rows=n_rows)}
    return benchmark("text", options, {"rows": n_rows}, problems, methods)


if __name__ == "__main__":
    sys.exit(main())
