"""Calibrate the ViT of Fashion-MNIST with half its steps and a quarter of its parameters.

    python examples/benchmarks/fashion_mnist.py

The wrapped model has 8 blocks; the unified transition has 4 steps of rank 16. All methods get the
same 3,000 calibration images and are judged on the 10,000 test images. The data and the model are
read from ``SKLEARN_DIFFUQ_DATA`` (see `sklearn_diffuq.datasets.fetch_fashion_mnist`); the model's
weights lie in ``../models/vit-fashion-mnist`` beside the data.
"""

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch
from report import measure
from safetensors.torch import load_file
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from timm.models import VisionTransformer

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier
from sklearn_diffuq.datasets import fetch_fashion_mnist


def load_model(directory):
    """Return the fine-tuned ViT."""
    model = VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=128, depth=8, num_heads=4
    )
    model.load_state_dict(load_file(directory / "model.safetensors"))
    return model


def main():
    """Fit, time and score every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n-steps", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--inferences", nargs="+", default=["mean", "moments", "sampling"])
    parser.add_argument("--n-threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.n_threads)
    data_home = Path(os.environ["SKLEARN_DIFFUQ_DATA"])
    data = fetch_fashion_mnist(data_home, normalize=True)
    calibration = data.X_calibration, data.y_calibration
    X_test, y_test = data.X_test, data.y_test
    model = load_model(data_home.parent / "models" / "vit-fashion-mnist")
    wrapped = TransformerClassifier(model).fit(*calibration)
    frozen = FrozenEstimator(wrapped)
    rows = [{"method": "backbone", **measure(y_test, frozen.predict_proba(X_test))}]
    for method in ("temperature", "sigmoid", "isotonic"):
        rival = CalibratedClassifierCV(frozen, method=method).fit(*calibration)
        rows.append({"method": method, **measure(y_test, rival.predict_proba(X_test))})
    print(pd.DataFrame(rows).round(4).to_string(), flush=True)
    for seed in options.seeds:
        classifier = DiffusionCalibratedClassifier(
            frozen, n_steps=options.n_steps, rank=options.rank, random_state=seed, verbose=1
        )
        start = time.perf_counter()
        classifier.fit(
            data.X_train,
            data.y_train,
            X_calibration=calibration[0],
            y_calibration=calibration[1],
        )
        seconds = time.perf_counter() - start
        share = classifier.n_parameters_ / classifier.n_block_parameters_
        print(f"seed {seed}: fit {seconds:.0f} s, {share:.1%} of the blocks' parameters,", end=" ")
        print(f"noise {classifier.noise_scale_}, R^2 {classifier.history_[-1]['rolled_out_r2']}")
        for inference in options.inferences:
            classifier.set_params(inference=inference)
            start = time.perf_counter()
            proba = classifier.predict_proba(X_test)
            per_1000 = (time.perf_counter() - start) / len(X_test) * 1000
            row = {"method": f"diffusion, {inference}", "seed": seed, "fit s": seconds}
            rows.append({**row, "s/1000": per_1000, **measure(y_test, proba)})
            print(pd.DataFrame(rows[-1:]).round(4).to_string(header=False), flush=True)
    print(pd.DataFrame(rows).round(4).to_string())


if __name__ == "__main__":
    main()
