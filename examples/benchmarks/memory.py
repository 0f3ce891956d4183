"""Show that the memory of `fit` grows with the batch size and not with the number of samples.

    python examples/benchmarks/memory.py

A ViT of 6 blocks and 65 tokens is wrapped, and every fit runs in its own process. The table shows
the peak resident memory added by the fit, which excludes the images, and the memory that the states
of all samples would take.
"""

import argparse
import resource
import subprocess
import sys

N_BLOCKS, N_TOKENS, WIDTH = 6, 65, 64


def peak(n_samples, batch_size):
    """Return the MiB that a fit adds to the peak resident memory."""
    import numpy as np
    import torch
    from sklearn.frozen import FrozenEstimator
    from timm.models import VisionTransformer

    from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=4, in_chans=1, num_classes=2, embed_dim=WIDTH, depth=N_BLOCKS,
        num_heads=4,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_samples, 1, 32, 32)).astype(np.float32)
    y = (X[:, 0, :16].mean((1, 2)) > 0).astype(int)
    frozen = FrozenEstimator(TransformerClassifier(model).fit(X[:64], y[:64]))
    classifier = DiffusionCalibratedClassifier(
        frozen, n_steps=3, rank=4, max_epochs=2, batch_size=batch_size, random_state=0
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    classifier.fit(X, y, X_calibration=X[:300], y_calibration=y[:300])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main():
    """Measure every size in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=int, nargs=2, metavar=("N_SAMPLES", "BATCH_SIZE"))
    options = parser.parse_args()
    if options.measure:
        print(peak(*options.measure))
        return
    print("samples  batch size  MiB added by fit  MiB of all states")
    for n_samples, batch_size in ((2000, 64), (8000, 64), (2000, 256), (8000, 256)):
        command = [sys.executable, __file__, "--measure", str(n_samples), str(batch_size)]
        added = float(subprocess.run(command, check=True, capture_output=True).stdout)
        states = n_samples * (N_BLOCKS + 1) * N_TOKENS * WIDTH * 4 / 2**20
        print(f"{n_samples:7d}  {batch_size:10d}  {added:16.0f}  {states:17.0f}", flush=True)


if __name__ == "__main__":
    main()
