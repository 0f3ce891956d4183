"""Values per token and the side of padding: a model answers as for each row on its own."""

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from sklearn_diffuq import TransformerClassifier

Y = np.arange(16) % 2


class Valued(nn.Module):
    """Adds a value and a box per token to its embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.value, self.box = nn.Embedding(20, 8), nn.Linear(1, 8), nn.Linear(4, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask, values, bbox):
        h = self.embedding(input_ids) + 5 * self.value(values[..., None]) + self.box(bbox)
        for layer in self.layers:
            h = layer(h)
        real = attention_mask[..., None]
        return self.head((h * real).sum(1) / real.sum(1))


def test_values_and_boxes_per_token_arrive():
    rng = np.random.default_rng(0)
    mask = np.arange(9) < rng.integers(2, 10, size=(16, 1))
    X = {
        "input_ids": np.where(mask, rng.integers(1, 20, size=mask.shape), 0),
        "attention_mask": mask.astype(int),
        "values": np.where(mask, rng.random(mask.shape), 0).astype(np.float32),
        "bbox": np.where(mask[..., None], rng.random((16, 9, 4)), 0).astype(np.float32),
    }
    model = Valued().eval()
    with torch.no_grad():
        expected = softmax(model(**{k: torch.from_numpy(v) for k, v in X.items()}).numpy(), axis=1)
    clf = TransformerClassifier(model, device="cpu").fit(X, Y)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)
