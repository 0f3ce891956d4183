"""Which part of the method does what? Its controls on Fashion-MNIST.

    python examples/benchmarks/ablation.py --quick
    python examples/benchmarks/ablation.py

Each variant is `DiffusionCalibratedClassifier` with the options below; to try another, add a line.
A line whose options change needs a new name, since finished results are kept by name. Data and
model are those of ``vision.py``, with the corruptions at severities 1, 3 and 5.
"""

import sys
from functools import partial

from harness import benchmark, parse
from methods import Method, backbone, diffusions, trained_longer
from vision import FULL, QUICK, QUICK_TRAINING, UNIFIED, load

VARIANTS = {
    "default": {},
    "sigma = 0": {"inference": "mean"},
    "8 paths": {"inference": "sampling"},
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
    "residual covariance": {"covariance": "residual"},
    "independent token noise": {"noise_rank": 0},
    "one noise direction": {"noise_rank": 1},
    "32 paths": {"inference": "sampling", "n_samples": 32},
    "8 steps": {"n_steps": 8},
    "2 steps": {"n_steps": 2},
    "rank 4": {"rank": 4},
    "rank 64": {"rank": 64},
    "2 shared blocks": {"n_shared_blocks": 2},
    "readout trained": {"readout": "finetune"},
    "blockwise": {"transition": "blockwise", "n_steps": None},
    "blockwise, sigma = 0": {"transition": "blockwise", "n_steps": None, "inference": "mean"},
}
IN_QUICK = ("backbone", "default", "sigma = 0", "distillation only", "constant covariance")
SEVERITIES = (1, 3, 5)
N_EPOCHS_LONGER = 10  # as many as the diffusion trains for


def controls(**training):
    """Return name -> method."""
    longer = partial(trained_longer, **{"max_epochs": N_EPOCHS_LONGER, **training})
    rank_and_steps = {name: {**UNIFIED, **options} for name, options in VARIANTS.items()}
    return {
        "backbone": backbone()["backbone"],
        "backbone, trained longer": Method(longer),
        **diffusions(rank_and_steps, **training),
    }


def main():
    """Run the benchmark."""
    options = parse(__doc__.splitlines()[0], list(controls()), n_seeds=3, cheap=IN_QUICK)
    n_rows = QUICK if options.quick else FULL
    methods = controls(**(QUICK_TRAINING if options.quick else {}))
    problems = {
        "Fashion-MNIST": partial(load, n_rows=n_rows, severities=SEVERITIES, outliers=("digits",))
    }
    return benchmark("ablation", options, {"rows": n_rows}, problems, methods)


if __name__ == "__main__":
    sys.exit(main())
