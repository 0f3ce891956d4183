"""Fitting a path: estimate it, fit one transition to it, calibrate it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch
from sklearn_diffuq._calibration.calibrator import Calibrator, Reference
from sklearn_diffuq._calibration.held_out import warn_of_unfit_rows
from sklearn_diffuq._calibration.output_order import warn_of_doubtful_outputs
from sklearn_diffuq._fitted_path import FittedPath
from sklearn_diffuq._inputs.batching import CPU_CHUNK, kept_chunk, unpadded_batches, unpadded_order
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.not_finite import rows_blamed, rows_not_finite
from sklearn_diffuq._inputs.rows import random_rows
from sklearn_diffuq._path.attention_covariance import attention_covariance
from sklearn_diffuq._path.covariance import StateCovariance, fit_covariance
from sklearn_diffuq._path.embedding_shift import EmbeddingMoments
from sklearn_diffuq._path.input_moments import InputMoments
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import PathStatistics, collect_statistics, own_states
from sklearn_diffuq._path.time_grid import Grid, steps_of, time_grid
from sklearn_diffuq._propagation.propagate import mean_logits
from sklearn_diffuq._transition.closed_form_start import unified_transition
from sklearn_diffuq._transition.objective import PathObjective
from sklearn_diffuq._transition.rank import (
    ACCURACY_MARGIN,
    choose_rank,
    lost_accuracy,
    standard_error,
)
from sklearn_diffuq._transition.train import train_transition
from sklearn_diffuq._transition.training_options import TrainingOptions
from sklearn_diffuq._transition.unified_transition import UnifiedTransition
from sklearn_diffuq._warnings import warn_user
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
    draws : bool, default=False
        Whether the noise of "sampling" is tried on real paths.
    """

    transition: str
    step_counts: tuple[int, ...]
    rank: int | Literal["auto"] | None
    n_shared_blocks: int
    covariance: str
    noise_rank: int
    training: TrainingOptions
    seed: int
    draws: bool = False


def fit_path(
    backbone: Backbone,
    training: LabelledInputs,
    held_out: LabelledInputs,
    options: PathOptions,
    classes: np.ndarray | None = None,
) -> FittedPath:
    """Fit covariance, transition and calibration of the path of a frozen backbone.

    Parameters
    ----------
    backbone : Backbone
        Held by its `frozen` context.
    training, held_out : LabelledInputs
    options : PathOptions
    classes : ndarray of shape (n_classes,), default=None
        The labels, by which a warning names the classes; None numbers them.

    Returns
    -------
    fitted : FittedPath

    Raises
    ------
    NotFiniteError
        If states or logits are NaN or infinite.

    Warns
    -----
    CalibrationWarning
        If the held-out labels contradict the wrapped model, or training costs accuracy.
    """
    grids = {n: time_grid(backbone.n_blocks, n) for n in options.step_counts}
    some = training.take(random_rows(len(training), MAX_STATISTICS_ROWS, options.seed))
    intervals = sorted({interval for grid in grids.values() for interval in steps_of(grid)})
    is_unified = options.transition == "unified"
    chunk = kept_chunk(some.inputs, backbone.device)
    batches = _batches(some, backbone, chunk)
    statistics = collect_statistics(backbone, batches, intervals, is_unified)
    _check_finite(statistics, some)
    embedding = EmbeddingMoments.of(statistics.embedded)
    if held_out.inputs.source != training.inputs.source:  # given, not split off
        warn_of_unfit_rows(backbone, training, held_out, embedding, options.seed)
    path = _frozen_path(backbone, some, statistics, next(iter(grids.values())), options)
    has_distance = options.covariance != "constant"
    calibrator = Calibrator(backbone, held_out, has_distance, options.seed, options.draws)
    frozen = calibrator.reference(path)
    labels = np.arange(frozen.logits.shape[1]) if classes is None else classes
    warn_of_doubtful_outputs(frozen, held_out.y, backbone, labels)
    if is_unified:
        transition, references, history = fit_transition(
            path, statistics, list(grids.values()), training, calibrator, frozen, options
        )
        path = _own_path(transition, path, some, statistics, options)
    else:
        # on any grid the mean is the wrapped model's; linearised is the path on the first one
        references = {grid: replace(frozen, law=None) for grid in grids.values()}
        references[path.grid], history = frozen, []
    calibrations = {n: calibrator.calibrate(path.on(g), references[g]) for n, g in grids.items()}
    return FittedPath(path, grids, calibrations, history, options.seed, embedding)


def fit_transition(
    path: GaussianPath,
    statistics: PathStatistics,
    grids: Sequence[Grid],
    training: LabelledInputs,
    calibrator: Calibrator,
    frozen: Reference,
    options: PathOptions,
) -> tuple[UnifiedTransition, dict[Grid, Reference], list[dict[str, Any]]]:
    """Fit one transition for all steps: choose its rank, start it, train it, accept it or not.

    Parameters
    ----------
    path : GaussianPath
        The frozen path.
    statistics : PathStatistics
        Of the frozen path; its moments are given up.
    grids : sequence of tuple of int
        Time grids to fit for.
    training : LabelledInputs
    calibrator : Calibrator
    frozen : Reference
        Of the frozen path.
    options : PathOptions

    Returns
    -------
    transition : UnifiedTransition
        Without gradients.
    references : dict from tuple of int to Reference
        What it says of the held-out samples on each grid.
    history : list of dict
        One entry per epoch of training; empty if nothing was trained.
    """
    backbone, held_out, rank = calibrator.backbone, calibrator.held_out, options.rank
    if rank == "auto":
        moments, n_shared_blocks = statistics.moments, options.n_shared_blocks
        rank = choose_rank(backbone, moments, held_out, n_shared_blocks, frozen, options.seed)
    transition = _start(backbone, statistics.moments, path.covariance, rank, options)
    statistics.moments.clear()  # a full rank needs none
    # at full rank, with one step per block, the transition is the wrapped model
    is_exact = len(grids) == 1 and path.n_steps == backbone.n_blocks
    exact = {path.grid: replace(frozen, law=None)}
    if is_exact and rank is None:
        return transition.requires_grad_(False), exact, []
    scales = calibrator.noise_scales(path, frozen)
    objective = PathObjective(
        backbone,
        transition,
        path.covariance,
        scales,
        grids,
        training,
        frozen.temperature,
        options.training,
    )
    frozen_mean, inputs = BlockwiseMean(backbone), training.inputs
    with rows_blamed(lambda: mean_logits(frozen_mean, grids[0], backbone, inputs), len(training)):
        history = train_transition(objective, held_out)
    trained = {grid: calibrator.run_mean(transition, grid) for grid in grids}
    loses = trained[path.grid].nll > frozen.nll + NLL_MARGIN
    if options.rank == "auto" and is_exact and loses:
        transition = _start(backbone, statistics.moments, path.covariance, None, options)
        return transition.requires_grad_(False), exact, history
    _warn_of_lost_accuracy(rank, trained, frozen, held_out.y)
    return transition.requires_grad_(False), trained, history


def _batches(
    labelled: LabelledInputs, backbone: Backbone, chunk: tuple[int, int] = CPU_CHUNK[:2]
) -> Iterator[Batch]:
    for _, batch in unpadded_batches(labelled.inputs, backbone.device, *chunk):
        yield batch


def _check_finite(statistics: PathStatistics, some: LabelledInputs) -> None:
    """Refuse training samples with states that are not finite; they would be part of all sums."""
    described = torch.cat(list(statistics.states.values()), 1)
    bad = rows_not_finite(described)
    if len(bad):
        raise some.inputs.refusal(unpadded_order(some.inputs)[bad])


def _frozen_path(
    backbone: Backbone,
    some: LabelledInputs,
    statistics: PathStatistics,
    grid: Grid,
    options: PathOptions,
) -> GaussianPath:
    """Return the path whose mean is the wrapped model."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.covariance == "attention":
        fewer = some.take(np.arange(min(len(some), MAX_ATTENTION_ROWS)))
        batches = list(_batches(fewer, backbone))
        covariance = attention_covariance(
            backbone, batches, statistics.intervals, options.noise_rank, generator
        )
    else:
        covariance = fit_covariance(statistics, options.noise_rank, generator)
    return GaussianPath(BlockwiseMean(backbone), covariance.to(backbone.device), grid)


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
        batches = _batches(some, backbone, kept_chunk(some.inputs, backbone.device))
        states = own_states(transition, backbone, batches, grids)
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
            warn_user(
                f"The unified transition of {'full rank' if rank is None else f'rank {rank}'} is "
                f"right on {100 * right:.1f}% of the held-out rows in {len(grid) - 1} step(s), "
                f"{100 * lost.mean():.1f} points less than the wrapped model. Raise rank (None is "
                "the wrapped model itself), n_steps or max_epochs, or use transition='blockwise', "
                "which keeps the accuracy.",
                CalibrationWarning,
            )
