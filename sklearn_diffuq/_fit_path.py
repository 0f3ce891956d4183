"""Fitting a path: estimate it, fit one transition to it, calibrate it."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch
from sklearn_diffuq._calibration.calibrate import Calibrator, Reference
from sklearn_diffuq._fitted_path import FittedPath
from sklearn_diffuq._inputs.batching import unpadded_batches
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import random_rows
from sklearn_diffuq._path.attention_covariance import attention_covariance
from sklearn_diffuq._path.covariance import StateCovariance, fit_covariance
from sklearn_diffuq._path.input_moments import InputMoments
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import PathStatistics, collect_statistics, own_states
from sklearn_diffuq._path.time_grid import Grid, steps_of, time_grid
from sklearn_diffuq._transition.closed_form_start import unified_transition
from sklearn_diffuq._transition.objective import PathObjective
from sklearn_diffuq._transition.options import TrainingOptions
from sklearn_diffuq._transition.rank import (
    ACCURACY_MARGIN,
    choose_rank,
    lost_accuracy,
    standard_error,
)
from sklearn_diffuq._transition.train import train_transition
from sklearn_diffuq._transition.unified_transition import UnifiedTransition
from sklearn_diffuq.exceptions import CalibrationWarning

MAX_STATISTICS_ROWS = 2048  # training rows of the one pass that estimates the path
MAX_ATTENTION_ROWS = 512  # of these, rows whose keys and values are kept for a moment
VARIANCE_START = 0.1  # of the learned variance, in units of the increments
NLL_MARGIN = 0.01  # nats that a trained transition may be worse than the wrapped model


@dataclass(frozen=True)
class PathOptions:
    """What path to fit; see the parameters of `DiffusionCalibratedClassifier`.

    Attributes
    ----------
    transition : {"unified", "blockwise"}
    step_counts : tuple of int
        Numbers of steps to fit for, the first one first.
    rank : int, "auto" or None
    n_shared_blocks : int
    covariance : {"gp", "attention", "constant"}
    noise_rank : int
    training : TrainingOptions
        Of the unified transition.
    seed : int
    """

    transition: str
    step_counts: tuple[int, ...]
    rank: int | str | None
    n_shared_blocks: int
    covariance: str
    noise_rank: int
    training: TrainingOptions
    seed: int


def fit_path(
    backbone: Backbone, training: LabelledInputs, held_out: LabelledInputs, options: PathOptions
) -> FittedPath:
    """Fit covariance, transition and calibration of the path of a frozen backbone.

    Parameters
    ----------
    backbone : Backbone
        Held by its `frozen` context.
    training, held_out : LabelledInputs
    options : PathOptions

    Returns
    -------
    fitted : FittedPath
    """
    seed, auto = options.seed, options.rank == "auto"
    grids = {n: time_grid(backbone.n_blocks, n) for n in options.step_counts}
    first = next(iter(grids.values()))
    intervals = sorted({interval for grid in grids.values() for interval in steps_of(grid)})
    some = training.take(random_rows(len(training), MAX_STATISTICS_ROWS, seed))
    unified = options.transition == "unified"
    statistics = collect_statistics(backbone, _batches(some, backbone), intervals, unified)
    covariance = _frozen_covariance(backbone, some, statistics, options)
    calibrator = Calibrator(backbone, held_out, options.covariance != "constant", seed)
    path = GaussianPath(BlockwiseMean(backbone), covariance, first)
    frozen = calibrator.reference(path)
    references = {grid: replace(frozen, law=None) for grid in grids.values()} | {first: frozen}
    history: list[dict[str, Any]] = []
    if unified:
        assert statistics.moments is not None
        can_be_exact = len(grids) == 1 and len(intervals) == backbone.n_blocks
        rank = _rank(backbone, statistics.moments, held_out, frozen, options)
        transition = _start(backbone, statistics.moments, covariance, rank, options)
        references = {first: replace(frozen, law=None)}
        if rank is not None or not can_be_exact:
            objective = PathObjective(
                backbone,
                transition,
                covariance,
                calibrator.moments(path, frozen).scales,
                list(grids.values()),
                training,
                frozen.temperature,
                options.training,
            )
            history = train_transition(objective, held_out)
            trained = {g: calibrator.run_mean(transition, g) for g in grids.values()}
            if auto and can_be_exact and trained[first].nll > frozen.nll + NLL_MARGIN:
                transition = _start(backbone, statistics.moments, covariance, None, options)
            else:
                references = trained
                _warn_of_lost_accuracy(transition.rank, trained, frozen, held_out.y)
        transition.requires_grad_(False)
        path = _own_path(transition, path, some, statistics, options)
    calibrations = {n: calibrator.calibrate(path.on(g), references[g]) for n, g in grids.items()}
    return FittedPath(path, grids, calibrations, history, seed)


def _batches(labelled: LabelledInputs, backbone: Backbone) -> Iterator[Batch]:
    for _, batch in unpadded_batches(labelled.inputs, backbone.device):
        yield batch


def _frozen_covariance(
    backbone: Backbone, some: LabelledInputs, statistics: PathStatistics, options: PathOptions
) -> StateCovariance:
    """Return the covariance of the frozen path."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.covariance == "attention":
        fewer = some.take(np.arange(min(len(some), MAX_ATTENTION_ROWS)))
        batches = list(_batches(fewer, backbone))
        covariance = attention_covariance(
            backbone, batches, statistics.intervals, options.noise_rank, generator
        )
    else:
        covariance = fit_covariance(statistics, options.noise_rank, generator)
    return covariance.to(backbone.device)


def _rank(
    backbone: Backbone,
    moments: InputMoments,
    held_out: LabelledInputs,
    frozen: Reference,
    options: PathOptions,
) -> int | None:
    """Return the rank asked for; "auto" chooses one."""
    if not isinstance(options.rank, str):
        return options.rank
    n_shared_blocks, seed = options.n_shared_blocks, options.seed
    return choose_rank(backbone, moments, held_out, n_shared_blocks, frozen, seed)


def _start(
    backbone: Backbone,
    moments: InputMoments,
    covariance: StateCovariance,
    rank: int | None,
    options: PathOptions,
) -> UnifiedTransition:
    """Return the unified transition at its start, with a share of the frozen path's variance."""
    transition = unified_transition(
        backbone, covariance.intervals, rank, moments, options.n_shared_blocks
    )
    variance = VARIANCE_START * covariance.token_variances.clamp_min(1e-12)
    transition.log_variance.data.copy_(variance.log())
    return transition


def _own_path(
    transition: UnifiedTransition,
    frozen: GaussianPath,
    some: LabelledInputs,
    statistics: PathStatistics,
    options: PathOptions,
) -> GaussianPath:
    """Return the path of a transition: with its own variances, and distances to its own states."""
    covariance, backbone = frozen.covariance, transition.backbone
    if options.covariance != "attention":
        grids = [time_grid(backbone.n_blocks, n) for n in options.step_counts]
        states = own_states(transition, backbone, _batches(some, backbone), grids)
        generator = torch.Generator().manual_seed(options.seed)
        own = replace(statistics, states=states)
        covariance = fit_covariance(own, options.noise_rank, generator).to(backbone.device)
    covariance = covariance.with_token_variances(transition.variances())
    return GaussianPath(transition, covariance, frozen.grid)


def _warn_of_lost_accuracy(
    rank: int | None, references: dict[Grid, Reference], frozen: Reference, y: Tensor
) -> None:
    for grid, reference in references.items():
        lost = lost_accuracy(reference.logits, frozen.logits, y)
        if float(lost.mean()) > max(ACCURACY_MARGIN, 2 * standard_error(lost)):
            right = (reference.logits.argmax(1) == y).double().mean()
            warnings.warn(
                f"The unified transition of {'full rank' if rank is None else f'rank {rank}'} is "
                f"right on {100 * right:.1f}% of the held-out rows in {len(grid) - 1} step(s), "
                f"{100 * lost.mean():.1f} points less than the wrapped model. Raise rank (None is "
                "the wrapped model itself), n_steps or max_epochs, or use transition='blockwise', "
                "which keeps the accuracy.",
                CalibrationWarning,
                stacklevel=3,
            )
