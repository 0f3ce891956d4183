"""Choosing the rank of the unified transition before training."""

import numpy as np
import torch
from torch import nn

from sklearn_diffuq._path.path import BlockwiseMean, GaussianPath
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.propagate import logits_of
from sklearn_diffuq._transition.closed_form_start import unified_transition

ACCURACY_MARGIN = 0.005  # accuracy that a smaller transition may cost
KL_MARGIN = 0.05  # nats that its temperature-scaled probabilities may differ before training
MAX_RANK_ROWS = 2048  # held-out rows on which a rank is judged


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


def _margin(lost):
    """Return the accuracy that may be lost: the margin, or one standard error if that is more."""
    return max(ACCURACY_MARGIN, float(lost.std(correction=0)) / np.sqrt(len(lost)))
