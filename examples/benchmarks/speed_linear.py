"""Does the cost of a prediction grow linearly in rows, steps and paths, and its memory not at all?

    python examples/benchmarks/speed.py --data linear

Seconds per row, step or path at twice and four times the size, relative to those at the smallest: 1
is linear, and less means that a part of the cost does not grow. The memory that a prediction of
many table rows adds is measured in processes of their own; the rows themselves are not in it, the
probabilities are.
"""

import copy
import subprocess
import sys
from functools import partial

import numpy as np
from speed_cases import Size, make
from speed_measures import encoded_once, fitted, with_noise
from timing import Meter, best_seconds

TIMES = {"smallest": 1, "twice": 2, "four times": 4}
TABLE = "FT-Transformer, 3 blocks"
MANY_ROWS = {False: (100_000, 1_000_000), True: (10_000, 40_000)}  # by whether the run is quick


def measure_linear(quick):
    """Return method -> function that yields lines (part, metric, value)."""
    rows = partial(_rows, 512 if quick else 2048)
    memory = {f"memory of {n:,} table rows": partial(_memory, n) for n in MANY_ROWS[quick]}
    return {"rows": rows, "steps": _steps, "paths": _paths, **memory}


def _compare(calls, sizes):
    """Return lines of the seconds per unit of size, relative to the smallest."""
    for call in calls.values():
        call()
    best = best_seconds(calls, 0.5)
    per_unit = {name: best[name] / sizes[name] for name in calls}
    return [("linear", name, per_unit[name] / per_unit["smallest"]) for name in calls]


def _rows(n):
    case = make(TABLE, Size(256, 128, 4 * n), "cpu")
    classifier = with_noise(fitted(case, transition="blockwise")[0])
    parts = {name: case.X[: n * times] for name, times in TIMES.items()}
    with encoded_once():
        calls = {name: partial(classifier.predict_proba, X) for name, X in parts.items()}
        return _compare(calls, {name: len(X) for name, X in parts.items()})


def _steps():
    case = make("ViT, 12 blocks", Size(64, 32, 256), "cpu")
    classifier, _, _ = fitted(case, rank=4, max_epochs=1, n_steps=(3, 6, 12))
    classifier.set_params(inference="mean")
    sizes = {name: 3 * times for name, times in TIMES.items()}
    with encoded_once():
        calls = {
            name: partial(copy.copy(classifier).set_params(n_steps=n).predict_proba, case.X)
            for name, n in sizes.items()
        }
        return _compare(calls, sizes)


def _paths():
    case = make("BERT, 6 blocks", Size(64, 32, 128), "cpu")
    classifier = with_noise(fitted(case, transition="blockwise")[0])
    sizes = {name: 4 * times for name, times in TIMES.items()}
    with encoded_once():
        calls = {
            name: partial(
                copy.copy(classifier).set_params(inference="sampling", n_samples=n).predict_proba,
                case.X,
            )
            for name, n in sizes.items()
        }
        return _compare(calls, sizes)


def _memory(n):
    command = [sys.executable, "-W", "ignore", __file__, str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [("memory", "MiB added", float(done.stdout.splitlines()[-1]))]


def predict_many(n):
    """Return the MiB that predicting n table rows adds."""
    case = make(TABLE, Size(256, 128, 1024), "cpu")
    classifier = with_noise(fitted(case, transition="blockwise")[0])
    X = np.random.default_rng(0).standard_normal((n, case.X.shape[1]))
    classifier.predict_proba(case.X)
    with Meter() as meter:
        classifier.predict_proba(X)
    return meter.mib


if __name__ == "__main__":
    print(predict_many(int(sys.argv[1])))
