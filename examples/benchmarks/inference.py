"""One pass with moments against paths that are drawn: what it gives away, and what it costs.

    python examples/benchmarks/inference.py
    python examples/benchmarks/inference.py --data texts --seeds 0 1

The students are those of ``vision.py`` and ``text.py``; on texts that is the full rank, which is
what ``rank="auto"`` takes. Every kind of inference has the noise scales and the temperature that
the same fit has calibrated for it. 256 paths of texts take minutes per hundred rows, so that few
are judged, and the loss of single rows differs much. "all paths" is therefore judged on every test
row: the loss of infinitely many paths, estimated from eight, which are others for every few rows.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import text
import torch
import vision
from costs import prediction_seconds
from harness import OUTPUT, prepare, record
from methods import diffusion
from rendering import Section
from report import show_table
from scipy import stats
from scores import FLOOR, log_probabilities, row_nll
from store import Store
from summaries import interval
from tqdm import tqdm

from sklearn_diffuq._calibration.temperature import all_paths_nll

N_PATHS = (8, 256)
REFERENCE = f"{max(N_PATHS)} paths"
ALL = "all paths"
N_FRESH = 8  # paths of each row for ALL
FRESH_ROWS = 64  # at a time; they share their paths by the batch
N_ROWS = {"images": 1_000, "texts": 100}


def load(data, seed):
    """Return the problem, and the options of the classifier."""
    if data == "images":
        return prepare(vision.load(seed, vision.FULL, (), ())), vision.UNIFIED
    n_rows = {**text.FULL, "products": 1, "shift": 1}
    return prepare(text.load(seed, n_rows)), {"rank": None}


def fresh_paths_nll(classifier, X, y):
    """Return the loss (n,) of infinitely many paths, estimated from `N_FRESH` for every row."""
    nll = np.empty(len(y))
    order = np.argsort([len(x) for x in X], kind="stable")  # batches hold inputs of one length
    fresh = copy.copy(classifier)
    for start in range(0, len(y), FRESH_ROWS):
        rows = order[start : start + FRESH_ROWS]
        fresh._seed = classifier._seed + 1 + start
        log_p = np.log(np.maximum(fresh.sample_proba(X[rows], N_FRESH), np.exp(FLOOR)))
        for i, row in enumerate(rows):
            nll[row] = all_paths_nll(*map(torch.as_tensor, (log_p[:, [i]], y[[row]])), 1.0)
    return nll


def judge(data, seed):
    """Return kind of inference -> measured values on the test rows."""
    problem, options = load(data, seed)
    classifier = diffusion(problem.estimator, problem.train, problem.calibration, seed, **options)
    kinds = {"mean": {"inference": "mean"}, "moments": {"inference": "moments"}}
    kinds |= {f"{n} paths": {"inference": "sampling", "n_samples": n} for n in N_PATHS}
    kinds = {name: copy.copy(classifier).set_params(**then) for name, then in kinds.items()}
    seconds, mean_seconds = prediction_seconds(
        kinds["moments"], kinds["mean"], problem.calibration[0]
    )
    X, y = problem.parts[0].make(), problem.parts[0].y
    few = slice(N_ROWS[data])
    reference = log_probabilities(kinds[REFERENCE], X[few])
    everywhere = fresh_paths_nll(classifier, X, y)
    scales = classifier.calibration_["moments"].scales
    lines = {}
    for name, kind in kinds.items():
        one_pass = name in ("mean", "moments")
        own = reference if name == REFERENCE else log_probabilities(kind, X if one_pass else X[few])
        nll = row_nll(y[: len(own)], own)
        lines[name] = {
            "noise": scales.shared + scales.token,
            "nll": nll[few].mean(),
            "difference": (nll[few] - row_nll(y[few], reference)).mean(),
            "same class": 100 * (own[few].argmax(1) == reference.argmax(1)).mean(),
        }
        if one_pass:
            less = nll - everywhere
            lines[name] |= {"less all": less.mean(), "over rows": 1.96 * stats.sem(less)}
    lines["moments"]["relative seconds"] = seconds / mean_seconds
    nll = everywhere[few].mean()
    difference = nll - lines[REFERENCE]["nll"]
    lines[ALL] = {"noise": scales.shared + scales.token, "nll": nll, "difference": difference}
    return lines


def summary(results):
    """Return one line per data and kind of inference."""
    lines = []
    for (data, kind), found in results.groupby(["problem", "method"], sort=False):
        values = {metric: part["value"] for metric, part in found.groupby("metric")}
        over_rows = values.get("over rows")
        lines.append(
            {
                "data": data,
                "inference": kind,
                "seeds": len(values["nll"]),
                "of them with noise": (values["noise"] > 0).sum(),
                "nll": interval(values["nll"]),
                f"less that of {REFERENCE}": interval(values["difference"]),
                "largest": f"{values['difference'].abs().max():.4f}",
                f"less that of {ALL}, every row": interval(values.get("less all", [])),
                "± over rows": "" if over_rows is None else f"{over_rows.mean():.4f}",
                "same class, percent": interval(values.get("same class", []), 1),
                "seconds relative to mean": interval(values.get("relative seconds", []), 2),
            }
        )
    return pd.DataFrame(lines)


def main():
    """Run what is missing, print the table, and write it for the documentation if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(N_ROWS), nargs="+", default=list(N_ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--output", type=Path, default=OUTPUT / "inference")
    parser.add_argument("--rst", type=Path, help="folder for the table of the documentation")
    options = parser.parse_args()
    store = Store(options.output)
    keys = [(data, seed) for data in options.data for seed in options.seeds]
    missing = [key for key in keys if (*key, ALL) not in store.done()]
    if missing:
        store.start("inference", {"rows": N_ROWS})
    for data, seed in tqdm(missing, unit="fit"):
        for kind, values in judge(data, seed).items():  # ALL comes last
            records = [record("test", metric, value) for metric, value in values.items()]
            store.add((data, seed, kind), records, {})
    show_table(store, Section("Moments and paths", "", summary(store.results)), options.rst)


if __name__ == "__main__":
    sys.exit(main())
