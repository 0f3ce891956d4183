"""One pass with moments against paths that are drawn: what it gives away, and what it costs.

    python examples/benchmarks/inference.py
    python examples/benchmarks/inference.py --data texts --seeds 0 1

The students of the images are those of ``ablation.py``, trained on a fifth of the images; the texts
are followed through the wrapped model's own blocks at full rank, which is what ``rank="auto"``
takes on them, with all held-out texts. Every kind of inference has the noise scales and the
temperature that the same fit has calibrated for it. 256 paths of texts take minutes per hundred
rows, so that few are judged; all kinds are judged on the same ones.
"""

import argparse
import copy
import sys
from pathlib import Path

import ablation
import pandas as pd
import text
import vision
from costs import prediction_seconds
from harness import OUTPUT, prepare, record
from methods import diffusion
from rendering import Section, markdown, rst
from report import TITLES, run_section
from scores import log_probabilities, row_nll
from store import Store
from summaries import interval
from tqdm import tqdm

N_PATHS = (8, 256)
REFERENCE = f"{max(N_PATHS)} paths"
N_ROWS = {"images": 500, "texts": 150}


def load(data, seed):
    """Return the problem, and the options of the classifier."""
    if data == "images":
        options = {**vision.UNIFIED, "max_epochs": ablation.N_EPOCHS}
        return prepare(vision.load(seed, ablation.ROWS, (), ())), options
    n_rows = {**text.FULL, "products": 1, "shift": 1}
    return prepare(text.load(seed, n_rows)), {"rank": None}


def judge(data, seed):
    """Return kind of inference -> measured values on the test rows."""
    problem, options = load(data, seed)
    classifier = diffusion(
        problem.estimator, problem.train, problem.calibration, seed, inference="sampling", **options
    )
    kinds = {"mean": {"inference": "mean"}, "moments": {"inference": "moments"}}
    kinds |= {f"{n} paths": {"inference": "sampling", "n_samples": n} for n in N_PATHS}
    kinds = {name: copy.copy(classifier).set_params(**then) for name, then in kinds.items()}
    seconds, mean_seconds = prediction_seconds(
        kinds["moments"], kinds["mean"], problem.calibration[0]
    )
    X, y = problem.parts[0].make()[: N_ROWS[data]], problem.parts[0].y[: N_ROWS[data]]
    log_proba = {name: log_probabilities(kind, X) for name, kind in kinds.items()}
    reference = log_proba[REFERENCE]
    scales = classifier.calibration_["moments"].scales
    lines = {}
    for name, own in log_proba.items():
        lines[name] = {
            "noise": scales.shared + scales.token,
            "nll": row_nll(y, own).mean(),
            "difference": (row_nll(y, own) - row_nll(y, reference)).mean(),
            "same class": 100 * (own.argmax(1) == reference.argmax(1)).mean(),
        }
    lines["moments"]["relative seconds"] = seconds / mean_seconds
    return lines


def summary(results):
    """Return one line per data and kind of inference."""
    lines = []
    for (data, kind), found in results.groupby(["problem", "method"], sort=False):
        values = {metric: part["value"] for metric, part in found.groupby("metric")}
        seconds = values.get("relative seconds")
        lines.append(
            {
                "data": data,
                "inference": kind,
                "seeds": len(values["nll"]),
                "of them with noise": (values["noise"] > 0).sum(),
                "nll": interval(values["nll"]),
                f"less that of {REFERENCE}": interval(values["difference"]),
                "largest": f"{values['difference'].abs().max():.4f}",
                "same class": f"{values['same class'].mean():.1f}%",
                "seconds relative to mean": "" if seconds is None else interval(seconds, 2),
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
    missing = [key for key in keys if (*key, REFERENCE) not in store.done()]
    if missing:
        store.start("inference", {"rows": N_ROWS})
    for data, seed in tqdm(missing, unit="fit"):
        for kind, values in judge(data, seed).items():  # the reference comes last
            records = [record("test", metric, value) for metric, value in values.items()]
            store.add((data, seed, kind), records, {})
    sections = [run_section(store), Section("Moments and paths", "", summary(store.results))]
    print(markdown(TITLES["inference"], sections))
    if options.rst:
        page = rst(TITLES["inference"], sections, "")
        (options.rst / "inference.inc").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
