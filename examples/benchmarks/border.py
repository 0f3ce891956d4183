"""Upper bounds: what could recalibration reach on product reviews if it knew their labels?

    python examples/benchmarks/border.py

The model of ``text.py`` was trained on movie reviews. Here, maps from its logit margin to a
probability are fitted *to labels of the product reviews themselves* and evaluated by five-fold
cross-validation. "confidence" may change the confidence but never the predicted class, like any
temperature or added variance; "border" may also move the decision boundary. These are upper bounds,
not methods: a map of the margin that is fitted without product reviews should not do better.
Readouts at every depth, fitted to the calibration texts, show whether the decision boundary has
moved for earlier states too. The gap is the share of texts predicted to be positive minus the share
that are positive, in percentage points.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import text
import torch
from evaluation import log_probabilities
from harness import OUTPUT, as_record, prepare
from rendering import Section
from report import show_tables
from scipy.special import expit
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from store import Store

from sklearn_diffuq.metrics._temperature import fit_temperature

BATCH = 64
ROWS = {**text.FULL, "shift": 1_000}
FLOOR = 1e-3  # keeps the steps of an isotonic map away from 0.5 and 1
READOUT_C = 1e-3  # strong regularisation of the readouts: 768 features, 1,500 texts


def confidence_map(margin, y, new_margin):
    """Return the probability of the positive class by isotonic regression on |margin|."""
    correct = (margin > 0) == y
    isotonic = IsotonicRegression(y_min=0.5 + FLOOR, y_max=1 - FLOOR, out_of_bounds="clip")
    p = isotonic.fit(np.abs(margin), correct).predict(np.abs(new_margin))
    return np.where(new_margin > 0, p, 1 - p)


def boundary_map(margin, y, new_margin):
    """Return the probability of the positive class by logistic regression on the margin."""
    logistic = LogisticRegression(C=1e6).fit(margin[:, None], y)
    return logistic.predict_proba(new_margin[:, None])[:, 1]


def cross_fitted(fit, margin, y):
    """Return the probability of every sample by a map that was fitted without its fold."""
    p = np.empty(len(y))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(margin[:, None], y):
        p[test] = fit(margin[train], y[train], margin[test])
    return p


@torch.no_grad()
def states(estimator, X):
    """Return first token and mean token after the embedding and each block, (depth, n, 2d)."""
    parts = []
    for start in range(0, len(X), BATCH):
        chosen = list(X[start : start + BATCH])
        batch = estimator.preprocessor(
            chosen, padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        found = torch.stack(estimator.model(**batch, output_hidden_states=True).hidden_states)
        mask = batch["attention_mask"][None, ..., None]
        mean = (found * mask).sum(2) / mask.sum(2)
        parts.append(torch.cat([found[:, :, 0], mean], 2))
    return torch.cat(parts, 1).numpy()


def measure(y, p):
    """Return metric -> value for probabilities of the positive class."""
    return {
        "nll": log_loss(y, np.clip(p, FLOOR, 1 - FLOOR)),
        "accuracy": 100 * ((p > 0.5) == y).mean(),
        "gap": 100 * ((p > 0.5).mean() - y.mean()),
    }


def evaluate_maps():
    """Yield (part, map, metric -> value)."""
    problem = prepare(text.load(0, ROWS))
    frozen, (X_cal, y_cal) = problem.estimator, problem.calibration
    temperature = fit_temperature(log_probabilities(frozen, X_cal), y_cal)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=READOUT_C, max_iter=1000))
    readouts = [clone(logistic).fit(x, y_cal) for x in states(frozen.estimator, X_cal)]
    for part in problem.parts:
        X, y = part.make(), part.y
        margin = log_probabilities(frozen, X) @ [-1, 1]
        name = f"{part.name}, severity {part.severity}" if part.severity else part.name
        yield name, "temperature", measure(y, expit(margin / temperature))
        if part.severity:
            continue
        for kind, fit in (("confidence", confidence_map), ("border", boundary_map)):
            yield name, f"{kind}, fitted here", measure(y, cross_fitted(fit, margin, y))
        for depth, x in enumerate(states(frozen.estimator, X)):
            p = readouts[depth].predict_proba(x)[:, 1]
            yield name, f"readout at depth {depth}", measure(y, p)


def summary(results):
    """Return a table with one row per part and map."""
    table = results.pivot_table(
        index=["part", "method"], columns="metric", values="value", sort=False
    ).reset_index()
    table["nll"] = table["nll"].map("{:.4f}".format)
    for metric in ("accuracy", "gap"):
        table[metric] = table[metric].map("{:.1f}".format)
    return table.rename(columns={"method": "map"})


def main():
    """Compute the missing results and print the table; with --rst, also write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT / "border")
    parser.add_argument("--rst", type=Path, help="folder for the table of the documentation")
    options = parser.parse_args()
    store = Store(options.output)
    if store.results.empty:
        store.start("border", {"rows": ROWS})
        for part, method, values in list(evaluate_maps()):  # store all or none
            records = [as_record(part, metric, value) for metric, value in values.items()]
            store.add(("Movie reviews", 0, method), records, {})
    show_tables(store, [Section("Maps", "", summary(store.results))], options.rst)


if __name__ == "__main__":
    sys.exit(main())
