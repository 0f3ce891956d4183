"""What could a recalibration reach on reviews of products, if it knew their labels?

    python examples/benchmarks/border.py

The model of ``text.py`` learned from movie reviews. Maps of its logit margin to a probability are
fitted *on labels of the product reviews themselves*, and judged on others of them (five folds):
"confidence" may change how sure the model is and never which class it prefers, as all widening and
every temperature; "border" may move the border between the classes too. They are no methods: no map
of the margin alone that sees no product review can be expected to do better. Readouts of every
depth, fitted on the calibration texts, tell whether the border has moved for earlier states as
well. A gap is the share of texts called positive minus that of the positive ones, in points.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import text
import torch
from harness import OUTPUT, prepare, record
from rendering import Section
from report import show_table
from scipy.special import expit
from scores import fit_temperature, log_probabilities
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from store import Store

BATCH = 64
ROWS = {**text.FULL, "shift": 1_000}
FLOOR = 1e-3  # no step of an isotonic map is certain, or undecided
READOUT_C = 1e-3  # of the readouts' logistic regressions; they see 768 features of 1,500 texts


def confidence_map(margin, y, new_margin):
    """Return the probability of the positive class by an isotonic map of the margin's size."""
    right = (margin > 0) == y
    isotonic = IsotonicRegression(y_min=0.5 + FLOOR, y_max=1 - FLOOR, out_of_bounds="clip")
    p = isotonic.fit(np.abs(margin), right).predict(np.abs(new_margin))
    return np.where(new_margin > 0, p, 1 - p)


def border_map(margin, y, new_margin):
    """Return the probability of the positive class by a logistic map of the margin."""
    logistic = LogisticRegression(C=1e6).fit(margin[:, None], y)
    return logistic.predict_proba(new_margin[:, None])[:, 1]


def cross_fitted(fit, margin, y):
    """Return the probabilities of all rows, each from a map that was fitted without its fold."""
    p = np.empty(len(y))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(margin[:, None], y):
        p[test] = fit(margin[train], y[train], margin[test])
    return p


@torch.no_grad()
def states(estimator, X):
    """Return first token and token mean after the embedding and each block, (n_times, n, 2d)."""
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


def scores(y, p):
    """Return the measured values of probabilities of the positive class."""
    return {
        "nll": log_loss(y, np.clip(p, FLOOR, 1 - FLOOR)),
        "accuracy": 100 * ((p > 0.5) == y).mean(),
        "gap": 100 * ((p > 0.5).mean() - y.mean()),
    }


def judge():
    """Yield (part, map, measured values)."""
    problem = prepare(text.load(0, ROWS))
    frozen, (X_cal, y_cal) = problem.estimator, problem.calibration
    temperature = fit_temperature(log_probabilities(frozen, X_cal), y_cal)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=READOUT_C, max_iter=1000))
    readouts = [clone(logistic).fit(x, y_cal) for x in states(frozen.estimator, X_cal)]
    for part in problem.parts:
        X, y = part.make(), part.y
        margin = log_probabilities(frozen, X) @ [-1, 1]
        name = f"{part.name}, severity {part.severity}" if part.severity else part.name
        yield name, "temperature", scores(y, expit(margin / temperature))
        if part.severity:
            continue
        for kind, fit in (("confidence", confidence_map), ("border", border_map)):
            yield name, f"{kind}, fitted here", scores(y, cross_fitted(fit, margin, y))
        for depth, x in enumerate(states(frozen.estimator, X)):
            p = readouts[depth].predict_proba(x)[:, 1]
            yield name, f"readout at depth {depth}", scores(y, p)


def summary(results):
    """Return one line per part and map."""
    table = results.pivot_table(
        index=["part", "method"], columns="metric", values="value", sort=False
    ).reset_index()
    table["nll"] = table["nll"].map("{:.4f}".format)
    for metric in ("accuracy", "gap"):
        table[metric] = table[metric].map("{:.1f}".format)
    return table.rename(columns={"method": "map"})


def main():
    """Run what is missing, print the table, and write it for the documentation if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT / "border")
    parser.add_argument("--rst", type=Path, help="folder for the table of the documentation")
    options = parser.parse_args()
    store = Store(options.output)
    if store.results.empty:
        store.start("border", {"rows": ROWS})
        for part, method, values in list(judge()):  # all of them or none
            records = [record(part, metric, value) for metric, value in values.items()]
            store.add(("Movie reviews", 0, method), records, {})
    show_table(store, Section("Maps", "", summary(store.results)), options.rst)


if __name__ == "__main__":
    sys.exit(main())
