"""Choosing the rank of the unified transition, before training."""

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._calibration.calibrator import Reference
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import random_rows
from sklearn_diffuq._path.input_moments import InputMoments
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.propagate import mean_logits
from sklearn_diffuq._transition.closed_form_start import transition_size, unified_transition

ACCURACY_MARGIN = 0.005  # accuracy that a smaller transition may cost
KL_MARGIN = 0.05  # nats that its temperature-scaled probabilities may differ before training
MAX_RANK_ROWS = 2048  # held-out rows on which a rank is judged
SMALLEST_RANK = 4


def choose_rank(
    backbone: Backbone,
    moments: InputMoments,
    held_out: LabelledInputs,
    n_shared_blocks: int,
    frozen: Reference,
    seed: int,
) -> int | None:
    """Return the smallest rank whose untrained path, one step per block, stays within the margins.

    Ranks are powers of two, tried by bisection; the full rank (None) is the wrapped model itself
    and is taken where no transition with fewer parameters is faithful.

    Parameters
    ----------
    backbone : Backbone
    moments : InputMoments
    held_out : LabelledInputs
    n_shared_blocks : int
    frozen : Reference
        Of the wrapped model, on the held-out rows.
    seed : int
        Of the rows that are judged, where there are many.

    Returns
    -------
    rank : int or None
    """
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    intervals = steps_of(grid)
    rows = random_rows(len(held_out), MAX_RANK_ROWS, seed)
    judged, frozen_logits = held_out.take(rows), frozen.logits[torch.from_numpy(rows)]

    def is_smaller(rank: int) -> bool:
        size = transition_size(backbone, intervals, rank, n_shared_blocks)
        return size < backbone.n_block_parameters

    def is_faithful(rank: int) -> bool:
        transition = unified_transition(backbone, intervals, rank, moments, n_shared_blocks)
        transition.requires_grad_(False)  # its matrices are merged once
        logits = mean_logits(transition, grid, backbone, judged.inputs)
        return within_margins(logits, frozen_logits, judged.y, frozen.temperature)

    powers = [2**i for i in range(backbone.width.bit_length())]
    ranks = [r for r in powers if r >= SMALLEST_RANK and is_smaller(r)]
    low, high = 0, len(ranks)  # the answer is in ranks[low:high], or full rank
    while low < high:
        middle = (low + high) // 2
        if is_faithful(ranks[middle]):
            high = middle
        else:
            low = middle + 1
    return ranks[low] if low < len(ranks) else None


def within_margins(logits: Tensor, frozen_logits: Tensor, y: Tensor, temperature: float) -> bool:
    """Tell whether logits keep accuracy and probabilities of the frozen ones (eq. 2.7)."""
    lost = lost_accuracy(logits, frozen_logits, y)
    log_p, log_q = (torch.log_softmax(z.double() / temperature, 1) for z in (logits, frozen_logits))
    kl = nn.functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    margin = max(ACCURACY_MARGIN, standard_error(lost))
    return float(lost.mean()) <= margin and float(kl) <= KL_MARGIN


def lost_accuracy(logits: Tensor, frozen_logits: Tensor, y: Tensor) -> Tensor:
    """Return 1, 0 or -1 for each row (n,): right in the frozen model only, no change, now right."""
    right, was_right = ((z.argmax(1) == y).double() for z in (logits, frozen_logits))
    return was_right - right


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of values (n,)."""
    return float(values.std(correction=0)) / float(np.sqrt(len(values)))
