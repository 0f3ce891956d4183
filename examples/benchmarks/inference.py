"""Moments in one pass against sampled paths: how much is lost, and how much faster is it?

    python examples/benchmarks/inference.py
    python examples/benchmarks/inference.py --data texts --seeds 0 1

The students are those of ``vision.py`` and ``text.py``; on texts they have full rank, which
``rank="auto"`` chooses. Each kind of inference uses the noise scales and the temperature that the
same fit calibrated for it. Sampling 256 paths takes minutes per hundred texts, so it is evaluated
on few samples, whose losses vary widely. "all paths" is therefore evaluated on the full test set:
it is the loss of infinitely many paths, estimated from eight fresh paths for every batch.
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
from evaluation import FLOOR, log_probabilities, sample_nll
from harness import OUTPUT, as_record, prepare
from methods import diffusion
from rendering import Section
from report import show_tables
from scipy import stats
from store import Store
from summaries import interval
from tqdm import tqdm

from sklearn_diffuq._calibration.temperature import all_paths_nll

N_PATHS = (8, 256)
REFERENCE = f"{max(N_PATHS)} paths"
ALL = "all paths"
N_FRESH = 8  # paths per sample for ALL
FRESH_BATCH = 64  # samples that share their paths
N_SAMPLES = {"images": 1_000, "texts": 100}


def load(data, seed):
    """Return the problem and the options of the classifier."""
    if data == "images":
        return prepare(vision.load(seed, vision.FULL, (), ())), vision.UNIFIED
    n_rows = {**text.FULL, "products": 1, "shift": 1}
    return prepare(text.load(seed, n_rows)), {"rank": None}


def fresh_paths_nll(classifier, X, y, seed):
    """Return the loss (n,) of infinitely many paths, estimated from `N_FRESH` per sample.

    Every batch draws its own paths, with seeds derived from `seed`.
    """
    nll = np.empty(len(y))
    rng = np.random.default_rng(seed)
    order = np.argsort([len(x) for x in X], kind="stable")  # batches of similar lengths
    for start in range(0, len(y), FRESH_BATCH):
        batch = order[start : start + FRESH_BATCH]
        path_seed = int(rng.integers(2**31))
        proba = classifier.sample_proba(X[batch], N_FRESH, random_state=path_seed)
        log_p = np.log(np.maximum(proba, np.exp(FLOOR)))
        for i, sample in enumerate(batch):
            nll[sample] = all_paths_nll(*map(torch.as_tensor, (log_p[:, [i]], y[[sample]])), 1.0)
    return nll


def evaluate_inference(data, seed):
    """Return kind of inference -> metric -> value on the test set."""
    problem, options = load(data, seed)
    classifier = diffusion(problem.estimator, problem.train, problem.calibration, seed, **options)
    kinds = {"mean": {"inference": "mean"}, "moments": {"inference": "moments"}}
    kinds |= {f"{n} paths": {"inference": "sampling", "n_samples": n} for n in N_PATHS}
    kinds = {name: copy.copy(classifier).set_params(**then) for name, then in kinds.items()}
    seconds, mean_seconds = prediction_seconds(
        kinds["moments"], kinds["mean"], problem.calibration[0]
    )
    X, y = problem.parts[0].make(), problem.parts[0].y
    few = slice(N_SAMPLES[data])
    reference = log_probabilities(kinds[REFERENCE], X[few])
    all_paths = fresh_paths_nll(classifier, X, y, seed)
    scales = classifier.calibration_["moments"].scales
    found = {}
    for name, kind in kinds.items():
        one_pass = name in ("mean", "moments")
        own = reference if name == REFERENCE else log_probabilities(kind, X if one_pass else X[few])
        nll = sample_nll(y[: len(own)], own)
        found[name] = {
            "noise": scales.shared + scales.token,
            "nll": nll[few].mean(),
            "difference": (nll[few] - sample_nll(y[few], reference)).mean(),
            "same class": 100 * (own[few].argmax(1) == reference.argmax(1)).mean(),
        }
        if one_pass:
            difference = nll - all_paths
            half_width = 1.96 * stats.sem(difference)
            found[name] |= {"less all": difference.mean(), "over rows": half_width}
    found["moments"]["relative seconds"] = seconds / mean_seconds
    nll = all_paths[few].mean()
    difference = nll - found[REFERENCE]["nll"]
    found[ALL] = {"noise": scales.shared + scales.token, "nll": nll, "difference": difference}
    return found


def summary(results):
    """Return a table with one row per data set and kind of inference."""
    rows = []
    for (data, kind), found in results.groupby(["problem", "method"], sort=False):
        values = {metric: part["value"] for metric, part in found.groupby("metric")}
        over_samples = values.get("over rows")
        rows.append(
            {
                "data": data,
                "inference": kind,
                "seeds": len(values["nll"]),
                "seeds with noise": (values["noise"] > 0).sum(),
                "NLL": interval(values["nll"]),
                f"NLL minus {max(N_PATHS)}-path NLL": interval(values["difference"]),
                "largest absolute difference": f"{values['difference'].abs().max():.4f}",
                "NLL minus all-paths NLL (full test set)": interval(values.get("less all", [])),
                "± over samples": "" if over_samples is None else f"{over_samples.mean():.4f}",
                "same class, percent": interval(values.get("same class", []), 1),
                "seconds relative to mean": interval(values.get("relative seconds", []), 2),
            }
        )
    return pd.DataFrame(rows)


def main():
    """Compute the missing results and print the table; with --rst, also write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(N_SAMPLES), nargs="+", default=list(N_SAMPLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--output", type=Path, default=OUTPUT / "inference")
    parser.add_argument("--rst", type=Path, help="folder for the table of the documentation")
    options = parser.parse_args()
    store = Store(options.output)
    keys = [(data, seed) for data in options.data for seed in options.seeds]
    missing = [key for key in keys if (*key, ALL) not in store.done()]
    if missing:
        store.start("inference", {"rows": N_SAMPLES})
    for data, seed in tqdm(missing, unit="fit"):
        for kind, values in evaluate_inference(data, seed).items():  # ALL comes last
            records = [as_record("test", metric, value) for metric, value in values.items()]
            store.add((data, seed, kind), records, {})
    show_tables(store, [Section("Moments and paths", "", summary(store.results))], options.rst)


if __name__ == "__main__":
    sys.exit(main())
