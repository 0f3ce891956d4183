"""Laws of logits whose best noise and temperature are known."""

from dataclasses import replace

import numpy as np
import torch

from sklearn_diffuq._propagation.linearised import LinearisedPath


def linearised(margin, variance):
    """Return two-class rows whose margin has the given variance under unit shared noise."""
    n = len(margin)
    logits = torch.stack([torch.zeros(n), margin], 1).double()
    top = torch.arange(2).expand(n, 2)
    shared = torch.zeros(n, 1, 2, 2, dtype=torch.float64)
    shared[:, 0, 1, 1] = variance
    zeros = torch.zeros(n, 1, dtype=torch.float64)
    return LinearisedPath(logits, top, shared, torch.zeros_like(shared), zeros, zeros[:, 0])


def with_distance(margin, distance):
    """Return two-class rows without noise at given distances."""
    law = linearised(margin, torch.zeros(len(margin)).double())
    return replace(law, distance=distance, start=distance[:, None])


def labels_of(logits, seed=0):
    """Draw labels by the probabilities of logits."""
    p = torch.softmax(logits.double(), -1)
    return torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


class NoisyMargins:
    """Paths to two logits whose margin has normal noise in a share of the rows, and labels."""

    def __init__(self, n, noise, share=1.0):
        self.rng = np.random.default_rng(0)
        self.noise = np.where(np.arange(n) < share * n, noise, 0.0)
        self.margin = self.rng.normal(0, 3, n)
        truth = self.margin + self.noise * self.rng.normal(size=n)
        self.y = torch.as_tensor(self.rng.random(n) < 1 / (1 + np.exp(-truth))).long()
        self.factor = 1.0

    def with_scales(self, scales):
        self.factor = scales.shared
        return self

    def draw(self, n_paths):
        z = self.rng.normal(size=(n_paths // 2, len(self.y)))
        noise = self.factor * self.noise * np.concatenate([z, -z])
        logits = torch.as_tensor(self.margin + noise)[..., None]
        return torch.cat([torch.zeros_like(logits), logits], 2)

    def exact_nll(self, temperature):
        x, weight = np.polynomial.hermite_e.hermegauss(81)
        margins = self.margin + self.factor * self.noise * x[:, None]
        p = weight / weight.sum() @ (1 / (1 + np.exp(-margins / temperature)))
        return -np.log(np.where(self.y == 1, p, 1 - p)).mean()
