"""Stages 2 to 5 in order: estimate the path, fit its transition, calibrate it."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from sklearn_diffuq._backbones.backbone import backbone_device
from sklearn_diffuq._calibration.calibrate import calibrate, calibrate_mean, calibrate_moments
from sklearn_diffuq._calibration.temperature import fit_temperature
from sklearn_diffuq._inputs.batching import real_rows
from sklearn_diffuq._inputs.rows import random_rows
from sklearn_diffuq._path.attention_covariance import attention_covariance
from sklearn_diffuq._path.covariance import fit_covariance, principal_factors
from sklearn_diffuq._path.distance import describe
from sklearn_diffuq._path.path import BlockwiseMean, GaussianPath
from sklearn_diffuq._path.statistics import RunningMoments, collect_statistics, token_mean
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._transition.closed_form_start import unified_transition
from sklearn_diffuq._transition.rank import ACCURACY_MARGIN, MAX_RANK_ROWS, _logits, choose_rank
from sklearn_diffuq._transition.train import start_variance, train_transition
from sklearn_diffuq.exceptions import CalibrationWarning

NLL_MARGIN = 0.01  # nats that it may be worse after training


def fit_transition(
    backbone,
    grids,
    moments,
    covariance,
    training,
    held_out,
    *,
    rank,
    n_shared_blocks,
    frozen,
    scales,
    teacher,
    device,
    seed,
    **options,
):
    """Start a unified transition from the frozen blocks, of a fitting rank, and train it.

    Parameters
    ----------
    backbone : Backbone
    grids : list of tuple of int
        Time grids to fit for.
    moments : InputMoments
    covariance : StateCovariance
        Of the frozen path.
    training, held_out : LabelledInputs
    rank : int, "auto" or None
        With "auto" and one step per block, the wrapped model's blocks come back where training
        does not make up for the rank.
    n_shared_blocks : int
    frozen : Calibration
        Temperature and held-out loss of the wrapped model.
    scales : callable
        Returns the `NoiseScales` to train under; not called where nothing is trained.
    teacher : Backbone
        `backbone`, or the wrapped model of which it is a copy whose readout is to be trained.
    device : str
    seed : int
    **options : dict
        Further arguments of `train_transition`.

    Returns
    -------
    transition : UnifiedTransition
        Without gradients.
    history : list of dict
        One entry per epoch; empty where nothing was trained.
    """
    chosen = rank
    if rank == "auto":
        judged = random_rows(held_out, MAX_RANK_ROWS, seed)
        chosen = choose_rank(backbone, moments, judged, n_shared_blocks, frozen.temperature, device)

    def start(rank):
        transition = unified_transition(
            backbone, covariance.intervals, rank, moments, n_shared_blocks
        ).to(device)
        start_variance(transition, covariance)
        return transition

    transition = start(chosen)
    # At full rank and one step per block the transition is the wrapped model.
    can_be_exact = len(covariance.intervals) == backbone.n_blocks and teacher is backbone
    can_be_exact = can_be_exact and len(grids) == 1
    history = []
    if chosen is not None or not can_be_exact:
        before = _logits(BlockwiseMean(backbone, grids[0]), backbone, held_out, device)
        history = train_transition(
            backbone,
            transition,
            covariance.replace(scales=scales()),
            grids,
            training,
            held_out,
            teacher=teacher,
            temperature=frozen.temperature,
            device=device,
            seed=seed,
            **options,
        )
        after = [_logits(transition.on(grid), backbone, held_out, device) for grid in grids]
        # of what was kept, which may be the start, and no epoch
        kept = fit_temperature(after[0][None], held_out.y, held_out.weight)[1]
        if rank == "auto" and can_be_exact and kept > frozen.nll + NLL_MARGIN:
            transition = start(None)
        else:
            for grid, logits in zip(grids, after, strict=True):
                _warn_of_lost_accuracy(logits, before, held_out.y, chosen, len(grid) - 1)
    return transition.requires_grad_(False), history


def _warn_of_lost_accuracy(logits, frozen_logits, y, rank, n_steps):
    right = (logits.argmax(1) == y).double()
    lost = (frozen_logits.argmax(1) == y).double() - right
    error = float(lost.std(correction=0)) / np.sqrt(len(y))
    if float(lost.mean()) > max(ACCURACY_MARGIN, 2 * error):
        warnings.warn(
            f"The unified transition of rank {rank} is right on {100 * right.mean():.1f}% of the "
            f"held-out rows in {n_steps} step(s), {100 * lost.mean():.1f} points less than the "
            "wrapped model. Raise rank (None is the wrapped model itself), n_steps or max_epochs, "
            "or use transition='blockwise', which keeps the accuracy.",
            CalibrationWarning,
            stacklevel=2,
        )


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
