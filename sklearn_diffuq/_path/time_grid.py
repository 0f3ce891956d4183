"""The time grid of the path: which blocks of the wrapped model a step stands for."""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np

Interval = tuple[int, int]  # first block of a step, and the block after its last
Grid = tuple[int, ...]  # the blocks at which steps begin, and the number of blocks


def time_grid(n_blocks: int, n_steps: int) -> Grid:
    """Return the block indices ``0 = l_0 < .. < l_S = n_blocks`` of an even time grid.

    Parameters
    ----------
    n_blocks : int
        Number of blocks L of the wrapped model.
    n_steps : int
        Number of diffusion steps S, between 1 and `n_blocks`.

    Returns
    -------
    grid : tuple of int, length ``n_steps + 1``

    Examples
    --------
    >>> from sklearn_diffuq._path.time_grid import time_grid
    >>> time_grid(8, 4)
    (0, 2, 4, 6, 8)
    """
    if not 1 <= n_steps <= n_blocks:
        raise ValueError(
            f"n_steps={n_steps} is not possible: the wrapped model has {n_blocks} blocks, so "
            f"n_steps must be between 1 and {n_blocks}, or None for one step per block."
        )
    return tuple(int(i) for i in np.round(np.linspace(0, n_blocks, n_steps + 1)))


def steps_of(grid: Grid) -> tuple[Interval, ...]:
    """Return the steps of a time grid as a tuple of (first block, block after the last)."""
    return tuple(pairwise(grid))


def step_counts(n_steps: int | Sequence[int] | None, n_blocks: int) -> tuple[int, ...]:
    """Return the numbers of steps that the parameter `n_steps` asks for, the first one first."""
    if n_steps is None:
        return (n_blocks,)
    counts = n_steps if isinstance(n_steps, (tuple, list)) else (n_steps,)
    ints = [n for n in counts if isinstance(n, Integral) and not isinstance(n, bool)]
    if not counts or len(ints) < len(counts):
        raise ValueError(f"n_steps must be an int, a sequence of ints or None, got {n_steps!r}.")
    return tuple(dict.fromkeys(int(n) for n in counts))
