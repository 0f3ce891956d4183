"""Calibrate the MiniLM of the movie reviews, and look at product reviews.

    python examples/benchmarks/movie_reviews.py

All methods get the same 1,500 calibration texts and are judged on the 3,105 test texts, and with
``--shift`` on the product reviews. The data are read from ``SKLEARN_DIFFUQ_DATA`` (see
`sklearn_diffuq.datasets.fetch_movie_reviews`); the model lies in ``../models/minilm-movie-reviews``
beside them.
"""

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch
from report import measure
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier
from sklearn_diffuq.datasets import fetch_amazon_reviews, fetch_movie_reviews


def main():
    """Fit, time and score every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--transitions", nargs="+", default=["blockwise", "unified"])
    parser.add_argument("--inferences", nargs="+", default=["mean", "moments", "sampling"])
    parser.add_argument("--shift", action="store_true", help="score the product reviews too")
    parser.add_argument("--n-threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.n_threads)
    data_home = Path(os.environ["SKLEARN_DIFFUQ_DATA"])
    data = fetch_movie_reviews(data_home)
    parts = {"test": (data.text[data.test], data.target[data.test])}
    if options.shift:
        amazon = fetch_amazon_reviews(data_home)
        parts["amazon"] = amazon.text, amazon.target
    path = data_home.parent / "models" / "minilm-movie-reviews"
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    X_cal, y_cal = data.text[data.calibration], data.target[data.calibration]
    tokenizer = AutoTokenizer.from_pretrained(path)
    wrapped = TransformerClassifier(model, preprocessor=tokenizer).fit(X_cal, y_cal)
    frozen = FrozenEstimator(wrapped)
    rows = []

    def score(method, classifier, **more):
        for part, (X, y) in parts.items():
            start = time.perf_counter()
            proba = classifier.predict_proba(X)
            seconds = (time.perf_counter() - start) / len(X) * 1000
            rows.append(
                {"method": method, "part": part, **more, **measure(y, proba), "s/1000": seconds}
            )
            print(pd.DataFrame(rows[-1:]).round(4).to_string(header=len(rows) == 1), flush=True)

    score("backbone", frozen)
    for method in ("temperature", "sigmoid", "isotonic"):
        score(method, CalibratedClassifierCV(frozen, method=method).fit(X_cal, y_cal))
    for seed in options.seeds:
        for transition in options.transitions:
            classifier = DiffusionCalibratedClassifier(
                frozen, transition=transition, random_state=seed, verbose=1
            )
            start = time.perf_counter()
            classifier.fit(
                data.text[data.train],
                data.target[data.train],
                X_calibration=X_cal,
                y_calibration=y_cal,
            )
            print(
                f"{transition}, seed {seed}: fit {time.perf_counter() - start:.0f} s, rank "
                f"{classifier.rank_}, {classifier.calibration_}"
            )
            for inference in options.inferences:
                classifier.set_params(inference=inference)
                score(f"{transition}, {inference}", classifier, seed=seed)
    print(pd.DataFrame(rows).round(4).to_string())


if __name__ == "__main__":
    main()
