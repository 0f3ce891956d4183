"""Fashion-MNIST and an 8-block ViT: in distribution, corrupted, and out of distribution.

    python examples/benchmarks/vision.py --quick
    python examples/benchmarks/vision.py

All methods get the same 3,000 calibration images and are evaluated on the 10,000 test images, on
1,000 of them under five corruptions of five severities, and on 1,000 out-of-distribution images of
each kind. Temperature and noise are fitted on clean images only. The diffusion has 4 steps of rank
22 and is trained for 12 epochs. Seeds change the training of the methods and the corruptions, but
not the model or the split.

The data are read from the folder given by ``SKLEARN_DIFFUQ_DATA`` (see
`sklearn_diffuq.datasets.fetch_fashion_mnist`), and the weights of the model from
``../models/vit-fashion-mnist`` relative to it.
"""

import sys
from functools import partial

import numpy as np
from harness import Part, Problem, benchmark, model_path, parse
from methods import registry
from safetensors.torch import load_file
from timm.models import VisionTransformer

from sklearn_diffuq import TransformerClassifier
from sklearn_diffuq.datasets import (
    corrupt_images,
    fetch_fashion_mnist,
    out_of_distribution_images,
)

CORRUPTIONS = ("noise", "blur", "rotate", "contrast", "translate")
OUTLIERS = ("digits", "inverted", "shuffled", "blank", "saturated")
# Kinds not used to choose `score_samples`, see doc/benchmarks.rst; they are averaged separately.
UNSEEN = ("letters", "photographs")
# A quarter of the parameters of the blocks.
UNIFIED = {"n_steps": 4, "rank": 22, "max_epochs": 12}
FULL = {"train": 20_000, "calibration": 3_000, "test": 10_000, "shift": 1_000}
QUICK = {"train": 6_000, "calibration": 1_000, "test": 1_000, "shift": 200}
QUICK_TRAINING = {"max_epochs": 7}


def load_model():
    """Return the fine-tuned ViT."""
    model = VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=128, depth=8, num_heads=4
    )
    model.load_state_dict(load_file(model_path("vit-fashion-mnist") / "model.safetensors"))
    return model


def make_parts(X, y, severities, outliers, seed):
    """Return the parts made from test images in [0, 1], normalised after the change."""
    data = fetch_fashion_mnist()

    def normal(images):
        return ((images - data.mean) / data.std).astype(np.float32)

    def corrupted(name, severity):
        return normal(corrupt_images(X, name, severity, random_state=seed))

    def outside(name):
        return normal(out_of_distribution_images(X, name, random_state=seed))

    parts = [
        Part(name, partial(corrupted, name, severity), y, severity)
        for name in CORRUPTIONS
        for severity in severities
    ]
    named = {name: f"unseen {name}" if name in UNSEEN else name for name in outliers}
    return parts + [Part(named[name], partial(outside, name), None) for name in outliers]


def load(seed, n_rows, severities=(1, 2, 3, 4, 5), outliers=(*OUTLIERS, *UNSEEN)):
    """Return the problem of a seed with the given numbers of samples."""
    data = fetch_fashion_mnist(normalize=True)
    pixels = fetch_fashion_mnist().X_test[: n_rows["shift"]]
    X_test, y_test = data.X_test[: n_rows["test"]], data.y_test[: n_rows["test"]]
    parts = make_parts(pixels, data.y_test[: len(pixels)], severities, outliers, seed)
    train, calibration = (
        (data[f"X_{name}"][: n_rows[name]], data[f"y_{name}"][: n_rows[name]])
        for name in ("train", "calibration")
    )
    test = Part("test", lambda: X_test, y_test)
    return Problem(TransformerClassifier(load_model()), train, calibration, [test, *parts])


def main():
    """Run the benchmark."""
    names = list(registry())
    options = parse(__doc__.splitlines()[0], names)
    n_rows = QUICK if options.quick else FULL
    methods = registry(UNIFIED, **(QUICK_TRAINING if options.quick else {}))
    problems = {"Fashion-MNIST": partial(load, n_rows=n_rows)}
    return benchmark("vision", options, {"rows": n_rows}, problems, methods)


if __name__ == "__main__":
    sys.exit(main())
