"""The entry to the training loop; skorch is loaded when something is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._training.seeds import own_torch_seed

BatchLoss = Callable[[np.ndarray, int, torch.Generator], dict[str, torch.Tensor]]
EpochBatches = Callable[[int, np.random.Generator], Sequence[np.ndarray]]
Validate = Callable[[int], float]


def train_module(
    module: torch.nn.Module,
    batch_loss: BatchLoss,
    epoch_batches: EpochBatches,
    options: LoopOptions,
    validate: Validate | None = None,
) -> list[dict[str, Any]]:
    """Train a module in place with AdamW and keep its best state.

    Two calls with the same arguments give the same bits. The global random state of torch and numpy
    is neither used nor changed. Afterwards the module is on the device of the options, in
    evaluation mode.

    Parameters
    ----------
    module : torch.nn.Module
        What is trained; only parameters that require a gradient change. Copy it before if the
        original is needed.
    batch_loss : callable
        ``batch_loss(rows, epoch, generator)`` returns a dict with the scalar tensor ``"loss"``;
        other entries are scalars recorded as means over the epoch. `generator` is a torch
        generator on the device.
    epoch_batches : callable
        ``epoch_batches(epoch, rng)`` returns a list of arrays of row numbers; `rng` is a numpy
        generator.
    options : LoopOptions
    validate : callable, default=None
        ``validate(epoch)`` returns a float, lower is better. It is called in evaluation mode,
        without gradients, with the averaged weights, before training (epoch -1) and after every
        epoch; the best state is restored at the end. None keeps the last state.

    Returns
    -------
    history : list of dict
        One entry per epoch: ``epoch`` (from 1), ``train_loss``, ``valid_loss``, ``lr``, ``dur`` in
        seconds, and the other entries of `batch_loss`.
    """
    from sklearn_diffuq._training.skorch_net import Net

    net = Net(
        module,
        batch_loss=batch_loss,
        epoch_batches=epoch_batches,
        validate=validate,
        options=options,
    )
    if options.compile:
        module.compile()
    try:
        with own_torch_seed(options.seed, options.device):
            net.initialize().partial_fit()
    finally:
        if options.compile:
            module._compiled_call_impl = None  # a compiled call cannot be pickled
    return [{k: v for k, v in row.items() if k != "batches"} for row in net.history]
