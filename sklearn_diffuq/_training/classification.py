"""Training a classifier by a loss per sample, such as the weighted cross-entropy."""

from torch.nn import functional as F

from sklearn_diffuq._inputs.batching import training_batches, unpadded_batches
from sklearn_diffuq._training.loop import train_module

VALIDATION_CHUNK = 256, 2**14  # rows, and tokens of text


def cross_entropy(logits):
    """Return the loss of each sample as a function of (batch, y), from ``logits(batch)``."""
    return lambda batch, y: F.cross_entropy(logits(batch).float(), y, reduction="none")


def fit_classifier(
    module, losses, training, held_out, batch_size, options, *, penalty=None, scores=None
):
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
        Stands in for `losses` on the held-out samples.

    Returns
    -------
    history : list of dict
        What `train_module` recorded.
    """
    device = options.device
    y, weight = training.y.to(device), _unit_mean(training.weight).to(device)

    def batch_loss(rows, epoch, generator):
        batch = training.inputs.batch(rows, device=device)
        loss = (losses(batch, y[rows]) * weight[rows]).mean()
        return {"loss": loss if penalty is None else loss + penalty()}

    def validate(epoch):
        total = 0.0
        for rows, batch in unpadded_batches(held_out.inputs, device, *VALIDATION_CHUNK):
            found = (losses if scores is None else scores)(batch, held_y[rows])
            total += (found * held_weight[rows]).sum().item()
        return total / len(held_out)

    has_held_out = held_out is not None and len(held_out) > 0
    if has_held_out:
        held_y, held_weight = held_out.y.to(device), _unit_mean(held_out.weight).to(device)
    return train_module(
        module,
        batch_loss,
        lambda epoch, rng: training_batches(training.inputs, batch_size, rng),
        options,
        validate if has_held_out else None,
    )


def _unit_mean(weight):
    return (weight / weight.mean()).float()
