"""Training the unified transition."""

import numpy as np
from torch import nn

from sklearn_diffuq._calibration.temperature import fit_temperature
from sklearn_diffuq._inputs.batching import training_batches
from sklearn_diffuq._path.path import BlockwiseMean
from sklearn_diffuq._training.loop import train_module
from sklearn_diffuq._transition.objective import PathObjective, rolled_out_r2
from sklearn_diffuq._transition.rank import _logits

WEIGHT_AVERAGE = 0.99
VARIANCE_START = 0.1  # of the learned variance, in units of the increments


def train_transition(
    backbone,
    transition,
    covariance,
    grids,
    training,
    held_out,
    *,
    teacher,
    temperature,
    weights,
    max_epochs,
    batch_size,
    device,
    precision,
    **options,
):
    """Train a unified transition in place.

    The epoch is chosen by the held-out negative log-likelihood of the mean path after temperature
    scaling, averaged over the time grids; the start is a candidate.

    Parameters
    ----------
    covariance : StateCovariance
        Of the frozen path, with the noise that the transition is trained under.
    grids : list of tuple of int
        Time grids to train for.
    teacher : Backbone
        Other than `backbone`, if the readout of that is trained too.
    temperature : float
        Temperature of the wrapped model's logits.
    weights : dict
        `path_weight`, `distillation_weight` and `label_weight` of `PathObjective`.
    **options : dict
        Further arguments of `train_module`.

    Returns
    -------
    history : list of dict
        One entry per epoch; ``rolled_out_r2`` is that of the first time grid.
    """
    frozen = BlockwiseMean(backbone, grids[0])
    if teacher is not backbone:
        transition.readout = _readout_parameters(backbone, held_out, device).requires_grad_(True)
    objective = PathObjective(
        backbone,
        transition,
        covariance,
        grids,
        training,
        temperature,
        max_epochs=max_epochs,
        teacher=teacher,
        precision=_precision(precision, device),
        **weights,
    )
    n_rows = min(batch_size, max(64, len(training) // 16))  # small data need steps, not rows
    some = np.arange(min(len(held_out), 256))
    scores = []

    def validate(epoch):
        nll = []
        for grid in grids:
            logits = _logits(transition.on(grid), backbone, held_out, device)
            nll.append(fit_temperature(logits[None], held_out.y, held_out.weight)[1])
        h, context = backbone.embed(held_out.inputs.batch(some, device=device))
        scores.append(rolled_out_r2(transition.on(grids[0]), frozen, h, context))
        return np.mean(nll)

    history = train_module(
        transition,
        objective,
        lambda epoch, rng: training_batches(training.inputs, n_rows, rng),
        max_epochs=max_epochs,
        validate=validate,
        average=WEIGHT_AVERAGE,
        device=device,
        **options,
    )
    for entry, r2 in zip(history, scores[1:], strict=False):
        entry["rolled_out_r2"] = r2
    if teacher is not backbone:
        del transition.readout  # trained in place: it belongs to the backbone
    return history


def _precision(precision, device):
    if precision != "auto":
        return precision
    return "bfloat16" if device.startswith("cuda") else "float32"


def _readout_parameters(backbone, held_out, device):
    """Return the parameters of the readout as a module that can be trained."""
    if backbone.custom_readout is not None:
        return nn.ParameterList(backbone.custom_readout.parameters())
    rows = np.arange(min(len(held_out), 2))
    names = backbone.readout_parameter_names(held_out.inputs.batch(rows, device=device))
    return nn.ParameterList(backbone.module.get_parameter(name) for name in names)


def start_variance(transition, covariance):
    """Set the transition's variances to a share of those of the increments."""
    start = VARIANCE_START * covariance.token_variances.clamp_min(1e-12)
    transition.log_variance.data.copy_(start.log())
