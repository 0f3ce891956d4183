"""Ablation: which part of the method does what, on images or on tabular data?

    python examples/benchmarks/ablation.py --quick
    python examples/benchmarks/ablation.py
    python examples/benchmarks/ablation.py --data tables

Each variant is `DiffusionCalibratedClassifier` with the options below. To try another, add a line.
Results are stored by name, so a variant whose options change needs a new name.

The images are those of ``vision.py``, with fewer samples, shorter training, and corruptions of
severities 1, 3 and 5. Calibration usually finds no noise on them, so noise ablations are compared
on tabular data: four of the tables of ``tables.py``.
"""

import sys
from dataclasses import replace
from functools import partial

import tables
import vision
from harness import benchmark, parse
from methods import Method, backbone, diffusions, trained_longer

TRAINED = {
    "default": {},
    "sigma = 0": {"inference": "mean"},
    "8 paths": {"inference": "sampling"},
    "256 paths": {"inference": "sampling", "n_samples": 256},
    "path only": {"distillation_weight": 0.0, "label_weight": 0.0},
    "label only": {"path_weight": 0.0, "distillation_weight": 0.0},
    "distillation only": {"path_weight": 0.0, "label_weight": 0.0},
    "distillation only, sigma = 0": {
        "path_weight": 0.0,
        "label_weight": 0.0,
        "inference": "mean",
    },
    "no path loss": {"path_weight": 0.0},
    "constant covariance": {"covariance": "constant"},
    "attention covariance": {"covariance": "attention"},
    "independent token noise": {"noise_rank": 0},
    "one noise direction": {"noise_rank": 1},
    "rank 4": {"rank": 4},
    "full rank": {"rank": None},
}
N_EPOCHS = 6
SEVERAL = "one fit for 4, 2 and 8 steps"
STEPS = {
    "8 steps": {"n_steps": 8},
    "2 steps": {"n_steps": 2},
    SEVERAL: {"n_steps": (4, 2, 8), "max_epochs": 3 * N_EPOCHS},  # as many as three fits have
    "2 shared blocks": {"n_shared_blocks": 2},
}
UNTRAINED = {
    "blockwise": {"transition": "blockwise", "n_steps": None},
    "blockwise, sigma = 0": {"transition": "blockwise", "n_steps": None, "inference": "mean"},
    "blockwise, constant covariance": {
        "transition": "blockwise",
        "n_steps": None,
        "covariance": "constant",
    },
}
IN_QUICK = ("backbone", "default", "sigma = 0", "distillation only", "constant covariance")
SEVERITIES = (1, 3, 5)
ROWS = {"train": 4_000, "calibration": 1_500, "test": 4_000, "shift": 500}
TABLES = ("heart", "contraceptive", "vehicle", "digits")


def image_variants(**training):
    """Return name -> method for the images."""
    variants = {**TRAINED, **STEPS, **UNTRAINED}
    fitted = {name: {**vision.UNIFIED, **training, **options} for name, options in variants.items()}
    methods = {
        "backbone": backbone()["backbone"],
        "backbone, trained longer": Method(partial(trained_longer, **training)),
    }
    for name, method in diffusions(fitted).items():
        methods[name] = method
        if name == SEVERAL:
            for n in (2, 8):
                then = {**method.then, "n_steps": n}
                methods[f"{name}, taken in {n}"] = replace(method, then=then)
    return methods


def table_variants():
    """Return name -> method for the tables."""
    return {"backbone": backbone()["backbone"], **diffusions({**TRAINED, **UNTRAINED})}


def add_arguments(parser):
    """Add the arguments of this benchmark."""
    parser.add_argument("--data", choices=("images", "tables"), default="images")


def main():
    """Run the benchmark."""
    names = list(image_variants(max_epochs=1))
    options = parse(__doc__.splitlines()[0], names, n_seeds=3, cheap=IN_QUICK, more=add_arguments)
    if options.data == "tables":
        max_rows = tables.QUICK_ROWS if options.quick else None
        problems = {
            name: partial(tables.load, name=name, training=tables.TRAINING, max_rows=max_rows)
            for name in TABLES
        }
        settings = {"max rows": max_rows}
        return benchmark("ablation-tables", options, settings, problems, table_variants())
    n_rows = vision.QUICK if options.quick else ROWS
    load = partial(vision.load, n_rows=n_rows, severities=SEVERITIES, outliers=("digits",))
    settings = {"rows": n_rows, "epochs": N_EPOCHS}
    problems = {"Fashion-MNIST": load}
    return benchmark("ablation", options, settings, problems, image_variants(max_epochs=N_EPOCHS))


if __name__ == "__main__":
    sys.exit(main())
