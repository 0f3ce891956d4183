"""Stages 3 and 4 in order: choose the size of the unified transition, start it, train it."""

import warnings

import numpy as np
import torch
from torch import nn

from sklearn_diffuq._calibration import fit_temperature
from sklearn_diffuq._inputs import training_batches
from sklearn_diffuq._objective import PathObjective, rolled_out_r2
from sklearn_diffuq._path import BlockwiseMean, GaussianPath, steps_of, time_grid
from sklearn_diffuq._propagation import logits_of
from sklearn_diffuq._training import train_module
from sklearn_diffuq._transition import unified_transition
from sklearn_diffuq.exceptions import CalibrationWarning

ACCURACY_MARGIN = 0.005  # accuracy that a smaller transition may cost
KL_MARGIN = 0.05  # nats that its temperature-scaled probabilities may differ before training
NLL_MARGIN = 0.01  # nats that it may be worse after training
MAX_RANK_ROWS = 2048  # held-out rows on which a rank is judged
WEIGHT_AVERAGE = 0.99
VARIANCE_START = 0.1  # of the learned variance, in units of the increments


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


def _logits(mean, backbone, labelled, device):
    """Return the logits (n, n_classes) at the end of a deterministic path."""
    return logits_of(GaussianPath(mean), backbone, labelled.inputs, None, device)[0]


def choose_rank(backbone, moments, held_out, n_shared_blocks, temperature, device):
    """Return the smallest rank whose untrained path, one step per block, stays within the margins.

    Ranks are powers of two, tried by bisection; the full rank (None) is the wrapped model itself
    and is taken where no smaller transition is both faithful and smaller.

    Parameters
    ----------
    backbone : Backbone
    moments : InputMoments
    held_out : LabelledInputs
        Rows to judge on.
    n_shared_blocks : int
    temperature : float
        Temperature of the wrapped model's logits.
    device : str

    Returns
    -------
    rank : int or None
    """
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    steps = steps_of(grid)
    frozen = _logits(BlockwiseMean(backbone, grid), backbone, held_out, device)
    n_blocks_parameters = sum(p.numel() for b in backbone.blocks for p in b.parameters())
    ranks = [2**i for i in range(2, max(3, backbone.width.bit_length()))]

    def faithful(rank):
        transition = unified_transition(backbone, steps, rank, moments, n_shared_blocks).to(device)
        if transition.n_parameters >= n_blocks_parameters:
            return None
        logits = _logits(transition, backbone, held_out, device)
        right, was_right = ((z.argmax(1) == held_out.y).double() for z in (logits, frozen))
        scaled = (z.double() / temperature for z in (logits, frozen))
        log_p, log_q = (torch.log_softmax(z, 1) for z in scaled)
        kl = nn.functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        return bool(
            float((was_right - right).mean()) <= _margin(was_right - right) and kl <= KL_MARGIN
        )

    low, high = 0, len(ranks)  # the answer is in ranks[low:high], or full rank
    while low < high:
        middle = (low + high) // 2
        verdict = faithful(ranks[middle])
        if verdict is False:
            low = middle + 1
        else:
            high = middle
            if verdict is None:
                ranks = ranks[:middle]
    return ranks[low] if low < len(ranks) else None


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


def _margin(lost):
    """Return the accuracy that may be lost: the margin, or one standard error if that is more."""
    return max(ACCURACY_MARGIN, float(lost.std(correction=0)) / np.sqrt(len(lost)))


def start_variance(transition, covariance):
    """Set the transition's variances to a share of those of the increments."""
    start = VARIANCE_START * covariance.token_variances.clamp_min(1e-12)
    transition.log_variance.data.copy_(start.log())


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


def random_rows(labelled, n_rows, seed):
    """Return at most `n_rows` rows, drawn at random: data are often sorted by class."""
    rows = np.random.default_rng(seed).permutation(len(labelled))[:n_rows]
    return labelled.take(np.sort(rows))
