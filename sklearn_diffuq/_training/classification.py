"""Training a classifier by a weighted loss per sample."""

import numpy as np
import torch
from torch.nn import functional as F

from sklearn_diffuq._inputs.batching import inference_batches, training_batches
from sklearn_diffuq._training.loop import train_module


def train_classifier(
    module, logits, inputs, target, weight, held, *, batch_size, device, n_tokens=None, **options
):
    """Minimise the weighted cross-entropy of ``logits(batch)``; score epochs on the rows `held`.

    Returns
    -------
    history : list of dict
        What `train_module` recorded.
    """
    train = np.setdiff1d(np.arange(len(target)), held)
    fitted, scored = inputs.take(train), inputs.take(held)
    y = torch.as_tensor(target, device=device)
    w = torch.as_tensor(weight, dtype=torch.float32, device=device)

    def cross_entropy(part, rows, batch):
        losses = F.cross_entropy(logits(batch).float(), y[part[rows]], reduction="none")
        return losses * w[part[rows]]

    def batch_loss(rows, epoch, generator):
        return {"loss": cross_entropy(train, rows, fitted.batch(rows, device=device)).mean()}

    def validate(epoch):
        total = 0.0
        for rows, _, length in inference_batches(scored, 256, 2**14, n_tokens):
            batch = scored.batch(rows, length, device)
            total += cross_entropy(held, rows, batch).sum().item()
        return total / weight[held].sum()

    return train_module(
        module,
        batch_loss,
        lambda epoch, rng: training_batches(fitted, batch_size, rng),
        validate=validate if len(held) else None,
        device=device,
        **options,
    )
