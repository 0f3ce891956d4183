"""Training a classifier by a loss per sample, such as the weighted cross-entropy."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_diffuq._inputs.batching import training_batches, unpadded_batches
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._training.loop import train_module
from sklearn_diffuq._training.loop_options import LoopOptions

Losses: TypeAlias = Callable[[dict[str, Tensor], Tensor], Tensor]  # (batch, y) -> one per sample

VALIDATION_CHUNK = 256, 2**14  # rows, and tokens of text


def cross_entropy(logits: Callable[[dict[str, Tensor]], Tensor]) -> Losses:
    """Return the loss of each sample as a function of (batch, y), from ``logits(batch)``."""
    return lambda batch, y: F.cross_entropy(logits(batch).float(), y, reduction="none")


def fit_classifier(
    module: nn.Module,
    losses: Losses,
    training: LabelledInputs,
    held_out: LabelledInputs | None,
    batch_size: int,
    options: LoopOptions,
    *,
    penalty: Callable[[], Tensor] | None = None,
    scores: Losses | None = None,
) -> list[dict[str, Any]]:
    """Train a module in place by the weighted mean of a loss per sample.

    Parameters
    ----------
    module : torch.nn.Module
        What is trained; parameters that require no gradient stay.
    losses : callable
        ``losses(batch, y)`` returns the loss of each sample, shape (m,).
    training : LabelledInputs
    held_out : LabelledInputs or None
        The epoch with the lowest mean loss on these samples is kept; None keeps the last one.
    batch_size : int
        Most samples in a batch.
    options : LoopOptions
    penalty : callable, default=None
        ``penalty()`` returns a scalar that is added to the mean training loss.
    scores : callable, default=None
        Used instead of `losses` on the held-out samples.

    Returns
    -------
    history : list of dict
        What `train_module` recorded.
    """
    device = options.device
    y, weight = training.y.to(device), _unit_mean(training.weight).to(device)

    def batch_loss(rows: np.ndarray, epoch: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = training.inputs.batch(rows, device=device)
        loss = (losses(batch, y[rows]) * weight[rows]).mean()
        return {"loss": loss if penalty is None else loss + penalty()}

    validate = None
    if held_out is not None and len(held_out) > 0:
        validate = _validation(losses if scores is None else scores, held_out, device)
    return train_module(
        module,
        batch_loss,
        lambda epoch, rng: training_batches(training.inputs, batch_size, rng),
        options,
        validate,
    )


def _validation(
    losses: Losses, held_out: LabelledInputs, device: str | torch.device
) -> Callable[[int], float]:
    """Return the weighted mean loss on held-out samples as a function of the epoch."""
    y, weight = held_out.y.to(device), _unit_mean(held_out.weight).to(device)

    def validate(epoch: int) -> float:
        sums = [
            (losses(batch, y[rows]) * weight[rows]).sum()
            for rows, batch in unpadded_batches(held_out.inputs, device, *VALIDATION_CHUNK)
        ]
        total: float = sum(torch.stack(sums).tolist())  # fetched once
        return total / len(held_out)

    return validate


def _unit_mean(weight: Tensor) -> Tensor:
    return (weight / weight.mean()).float()
