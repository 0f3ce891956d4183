"""Training the unified transition."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sklearn_diffuq._calibration.temperature import fit_temperature
from sklearn_diffuq._inputs.batching import training_batches
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import random_rows
from sklearn_diffuq._propagation.propagate import mean_logits
from sklearn_diffuq._training.loop import train_module
from sklearn_diffuq._transition.objective import PathObjective, rolled_out_r2

MIN_BATCHES = 16  # smaller data sets get smaller batches: they need steps, not rows
MIN_BATCH_SIZE = 64
R2_ROWS = 64  # training rows on which the rolled-out R^2 is measured; their states are kept


def train_transition(objective: PathObjective, held_out: LabelledInputs) -> list[dict]:
    """Train the unified transition of an objective in place, and leave it without gradients.

    The epoch is chosen by the held-out negative log-likelihood of the mean path after temperature
    scaling, averaged over the time grids; the start is a candidate.

    Parameters
    ----------
    objective : PathObjective
    held_out : LabelledInputs

    Returns
    -------
    history : list of dict
        One entry per epoch; ``rolled_out_r2`` is that of some training samples on the first grid.
    """
    backbone, transition, training = objective.backbone, objective.transition, objective.training
    loop = objective.options.loop
    smaller = max(MIN_BATCH_SIZE, len(training) // MIN_BATCHES)
    n_rows = min(objective.options.batch_size, smaller)
    some = random_rows(len(training), R2_ROWS, loop.seed)
    with torch.no_grad():  # the frozen path does not change from epoch to epoch
        h, context = backbone.embed(training.inputs.batch(some, device=backbone.device))
        states = objective.teacher.states(objective.grids[0], h, context)
    scores: list[list[float]] = []

    def validate(epoch: int) -> float:
        nll, merged = [], transition.merged()
        for grid in objective.grids:
            logits = mean_logits(merged, grid, backbone, held_out.inputs)
            nll.append(fit_temperature(logits[None], held_out.y, held_out.weight)[1])
        scores.append(rolled_out_r2(merged, objective.grids[0], states, context))
        return float(np.mean(nll))

    def epoch_batches(epoch: int, rng: np.random.Generator) -> Sequence[NDArray[np.intp]]:
        return training_batches(training.inputs, n_rows, rng)

    history = train_module(transition, objective, epoch_batches, loop, validate)
    transition.requires_grad_(False)
    for entry, r2 in zip(history, scores[1:], strict=False):
        entry["rolled_out_r2"] = r2
    return history
