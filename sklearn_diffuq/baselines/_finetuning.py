"""Fine-tuning of a copy of the wrapped model by any loss."""

import copy

import torch

from sklearn_diffuq._inputs.batching import inference_batches, training_batches
from sklearn_diffuq._training.loop import train_module


def trainable_copy(backbone):
    """Return a copy of a backbone, and its modules, all of whose numbers may be trained."""
    backbone = copy.deepcopy(backbone)
    roots = torch.nn.ModuleList([backbone.module])
    if backbone.custom_readout is not None:
        roots.append(backbone.custom_readout)
    for parameter in roots.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return backbone, roots


def fine_tune(owner, module, losses, training, held_out, seed, *, penalty=None, scores=None):
    """Train a module in place; keep the epoch with the lowest loss on the held-out rows.

    Parameters
    ----------
    owner : BaselineClassifier
        Brings `max_epochs`, `batch_size`, `lr`, `verbose` and the fitted `wrapped_`.
    module : torch.nn.Module
        What is trained; parameters that require no gradient stay.
    losses : callable
        ``losses(batch, y)`` returns the loss of each row, shape (m,).
    training, held_out : LabelledInputs
    seed : int
    penalty : callable, default=None
        ``penalty()`` returns a scalar that is added to the mean training loss.
    scores : callable, default=None
        Stands in for `losses` on the held-out rows.

    Returns
    -------
    history : list of dict
        What `train_module` recorded.
    """
    device, n_tokens = next(module.parameters()).device, owner.wrapped_._n_tokens
    y = {part: part.y.to(device) for part in (training, held_out)}
    w = {part: (part.weight / part.weight.mean()).float().to(device) for part in y}

    def weighted(part, rows, batch, losses=losses):
        return losses(batch, y[part][rows]) * w[part][rows]

    def batch_loss(rows, epoch, generator):
        batch = training.inputs.batch(rows, device=device)
        loss = weighted(training, rows, batch).mean()
        return {"loss": loss if penalty is None else loss + penalty()}

    def validate(epoch):
        total = 0.0
        for rows, _, length in inference_batches(held_out.inputs, 256, 2**14, n_tokens):
            batch = held_out.inputs.batch(rows, length, device)
            total += weighted(held_out, rows, batch, scores or losses).sum().item()
        return total / len(held_out)

    return train_module(
        module,
        batch_loss,
        lambda epoch, rng: training_batches(training.inputs, owner.batch_size, rng),
        validate=validate,
        max_epochs=owner.max_epochs,
        lr=owner.lr,
        weight_decay=0.01,
        device=device,
        seed=seed,
        verbose=owner.verbose,
    )
