"""Stages 2 to 5 in order: estimate the path, fit its transition, calibrate it."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from sklearn_diffuq._attention import attention_covariance
from sklearn_diffuq._calibration import calibrate, calibrate_mean, calibrate_moments
from sklearn_diffuq._covariance import describe, fit_covariance, principal_factors
from sklearn_diffuq._path import BlockwiseMean, GaussianPath, steps_of, time_grid
from sklearn_diffuq._propagation import real_rows
from sklearn_diffuq._statistics import RunningMoments, collect_statistics, token_mean
from sklearn_diffuq._transition_fitting import fit_transition, random_rows

MAX_STATISTICS_ROWS = 2048  # training rows of the one pass that estimates the path
MAX_ATTENTION_ROWS = 512  # of these, rows whose keys and values are kept for a moment


@dataclass(frozen=True)
class FittedPath:
    """Result of `fit_path`: the path, how it is calibrated, and how it came about.

    Attributes
    ----------
    path : GaussianPath
        It knows the steps of all `grids`.
    grids : dict from int to tuple of int
        Number of steps -> time grid.
    calibrations : dict from int to dict from {"mean", "moments", "sampling"} to Calibration
        Number of steps -> kind of inference -> calibration.
    rank : int or None
    history : list of dict
    """

    path: GaussianPath
    grids: dict
    calibrations: dict
    rank: int | None
    history: list


def fit_path(
    backbone,
    training,
    held_out,
    *,
    transition,
    step_counts,
    covariance,
    noise_rank,
    seed,
    **options,
):
    """Fit covariance, transition and calibration of the path of a frozen backbone.

    Parameters
    ----------
    backbone : Backbone
        Held by its `frozen` context.
    training, held_out : LabelledInputs
    step_counts : sequence of int
        Numbers of steps to fit for.
    seed : int
    **options : dict
        Further arguments of `fit_transition`. All other parameters are those of
        `DiffusionCalibratedClassifier`.

    Returns
    -------
    fitted : FittedPath
    """
    device = backbone_device(backbone)
    grids = {n: time_grid(backbone.n_blocks, n) for n in step_counts}
    intervals = sorted({step for grid in grids.values() for step in steps_of(grid)})
    unified = transition == "unified"
    some = random_rows(training, MAX_STATISTICS_ROWS, seed)
    statistics = collect_statistics(
        backbone, real_rows(some.inputs, device), intervals, with_moments=unified
    )
    noise_model = _frozen_covariance(
        backbone, some, statistics, covariance, noise_rank, seed, device
    )
    calibration_options = {"distance": covariance != "constant", "seed": seed, "device": device}
    first = next(iter(grids.values()))
    mean, history = BlockwiseMean(backbone, first), []
    if unified:
        frozen = GaussianPath(mean, noise_model.on(first))

        def training_scales():
            return calibrate_moments(frozen, backbone, held_out, **calibration_options).scales

        mean, history = fit_transition(
            backbone,
            list(grids.values()),
            statistics.moments,
            noise_model,
            training,
            held_out,
            frozen=calibrate_mean(frozen, backbone, held_out, device),
            scales=training_scales,
            device=device,
            seed=seed,
            **options,
        )
        if covariance != "attention":
            own = _own_states(backbone, mean, grids.values(), some)
            noise_model = fit_covariance(
                replace(statistics, states=own), noise_rank, torch.Generator().manual_seed(seed)
            ).to(device)
        noise_model = noise_model.replace(token_variances=mean.variances())
        if covariance == "residual":
            noise_model = _residual_covariance(backbone, mean, noise_model, some, noise_rank)
    path = GaussianPath(mean, noise_model)
    calibrations = {
        n: calibrate(path.on(grid), backbone, held_out, **calibration_options)
        for n, grid in grids.items()
    }
    return FittedPath(path, grids, calibrations, mean.rank if unified else None, history)


def _frozen_covariance(backbone, some, statistics, covariance, noise_rank, seed, device):
    """Return the `StateCovariance` of the frozen path, with all scales at zero."""
    generator = torch.Generator().manual_seed(seed)
    if covariance == "attention":
        fewer = some.take(np.arange(min(len(some), MAX_ATTENTION_ROWS)))
        batches = list(real_rows(fewer.inputs, device))
        fitted = attention_covariance(
            backbone, batches, statistics.intervals, noise_rank, generator
        )
    else:
        fitted = fit_covariance(statistics, noise_rank, generator)
    return fitted.to(device)


@torch.no_grad()
def _own_states(backbone, transition, grids, some):
    """Return the described states of training rows that the transition itself arrives at.

    A dict from block to Tensor (n, 3d). Where several grids meet a block, the first one counts.
    """
    states = {}
    for grid in grids:
        on_grid, found = transition.on(grid), {block: [] for block in grid}
        for batch in real_rows(some.inputs, backbone_device(backbone)):
            h, context = backbone.embed(batch)
            found[0].append(describe(h, context.mask))
            for step in range(on_grid.n_steps):
                h = on_grid(h, step, context)
                found[grid[step + 1]].append(describe(h, context.mask))
        states = {block: torch.cat(parts) for block, parts in found.items()} | states
    return states


@torch.no_grad()
def _residual_covariance(backbone, transition, covariance, some, noise_rank):
    """Return `covariance` with the directions in which the transition errs on frozen states."""
    device = backbone_device(backbone)
    intervals = transition.intervals
    pooled = [RunningMoments(full=True) for _ in intervals]
    for batch in real_rows(some.inputs, device):
        h, context = backbone.embed(batch)
        path = [h]
        for block in range(backbone.n_blocks):
            path.append(backbone.block(block, path[-1], context))
        for i, (start, stop) in enumerate(intervals):
            error = transition(path[start], i, context) - path[stop]
            pooled[i].update(token_mean(error, context.mask))
    second = torch.stack([m.covariance() for m in pooled])
    return covariance.replace(factors=principal_factors(second, noise_rank).to(device))


def backbone_device(backbone):
    """Return the device of the wrapped model as a str."""
    return str(next(backbone.module.parameters()).device)
