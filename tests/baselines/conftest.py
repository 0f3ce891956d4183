"""One small trained model with its rows, and every baseline fitted around it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from timm.models import VisionTransformer
from tiny_baselines import make

from sklearn_diffuq import TransformerClassifier


@pytest.fixture(scope="session")
def images():
    """Return images of three digits with names as labels, and a ViT trained on them."""
    X, y = load_digits(n_class=3, return_X_y=True)
    X, y = X.reshape(-1, 1, 8, 8) / 16, np.array(["one", "three", "two"])[y]
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    trained = TransformerClassifier(
        vit, finetune=True, max_epochs=30, lr=3e-3, device="cpu", random_state=0
    ).fit(X[:120], y[:120])
    return SimpleNamespace(
        X=X[:200], y=y[:200], X_test=X[200:330], y_test=y[200:330], trained=trained
    )


@pytest.fixture(scope="session")
def fitted(images):
    """Return a function from a name to that baseline, fitted once, around the trained ViT."""
    cache = {}

    def get(name):
        if name not in cache:
            clf = make(name, FrozenEstimator(images.trained))
            cache[name] = clf.fit(images.X, images.y)
        return cache[name]

    return get
