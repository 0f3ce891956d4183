"""One pass of training samples through the path, and what it measures.

The pass is streamed: sums are kept, and some thousand described states, never the states of the
data set.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch, mean_over_tokens
from sklearn_diffuq._path.distance import describe
from sklearn_diffuq._path.input_moments import InputMoments, MomentCollector, RunningMoments
from sklearn_diffuq._path.mean import Mean
from sklearn_diffuq._path.time_grid import Grid, Interval, steps_of


@dataclass(frozen=True)
class PathStatistics:
    """What one pass over training samples says of the frozen path, for every step it may take.

    Attributes
    ----------
    intervals : tuple of (int, int), length n_intervals
        First block of each step, and the block after its last.
    token_variance : Tensor of shape (n_intervals, d)
        Variance over tokens of the increment of each step.
    pooled_second_moment : Tensor of shape (n_intervals, d, d)
        Covariance over examples of the token mean of the increment.
    states : dict from int to Tensor of shape (n, 3d)
        Described states (see `describe`) before each block at which a step starts or ends.
    moments : InputMoments
        Of the linear layers; empty if they were not asked for.
    embedded : Tensor of shape (n, d)
        Token means of the states before the first block.
    """

    intervals: tuple[Interval, ...]
    token_variance: Tensor
    pooled_second_moment: Tensor
    states: dict[int, Tensor]
    moments: InputMoments
    embedded: Tensor


@torch.no_grad()
def collect_statistics(
    backbone: Backbone,
    batches: Iterable[Batch],
    intervals: Sequence[Interval],
    with_moments: bool,
) -> PathStatistics:
    """Run training batches through the frozen blocks and measure the path.

    Parameters
    ----------
    backbone : Backbone
    batches : iterable of dict of Tensor
    intervals : sequence of (int, int)
        First block of each step, and the block after its last; see `steps_of`.
    with_moments : bool
        Whether to collect the input moments of the linear layers too.

    Returns
    -------
    statistics : PathStatistics
    """
    tokens = [RunningMoments() for _ in intervals]
    pooled = [RunningMoments(full=True) for _ in intervals]
    described: dict[int, list[Tensor]] = {block: [] for step in intervals for block in step}
    embedded = []
    with MomentCollector(backbone.blocks if with_moments else []) as collector:
        for batch in batches:
            h, context = backbone.embed(batch)
            collector.mask = context.mask
            embedded.append(mean_over_tokens(h, context.mask))
            path = backbone.states(h, context)
            for block, parts in described.items():
                parts.append(describe(path[block], context.mask))
            for i, (start, stop) in enumerate(intervals):
                increment = (path[stop] - path[start]).float()
                tokens[i].update(_real(increment, context.mask))
                pooled[i].update(mean_over_tokens(increment, context.mask))
    return PathStatistics(
        tuple(intervals),
        torch.stack([m.covariance() for m in tokens]),
        torch.stack([m.covariance() for m in pooled]),
        {block: torch.cat(described[block]) for block in sorted(described)},
        collector.moments(),
        torch.cat(embedded),
    )


@torch.no_grad()
def own_states(
    mean: Mean, backbone: Backbone, batches: Iterable[Batch], grids: Sequence[Grid]
) -> dict[int, Tensor]:
    """Return the described states of training samples that a mean itself arrives at.

    Returns
    -------
    states : dict from int to Tensor of shape (n, 3d)
        By the block that comes next. Where several grids meet a block, the first one counts.
    """
    states: dict[int, list[Tensor]] = {}
    for batch in batches:
        embedded, context = backbone.embed(batch)
        found = {0: describe(embedded, context.mask)}
        for grid in grids:
            h = embedded
            for interval in steps_of(grid):
                h = mean(h, interval, context)
                if interval[1] not in found:
                    found[interval[1]] = describe(h, context.mask)
        for block, described in found.items():
            states.setdefault(block, []).append(described)
    return {block: torch.cat(parts) for block, parts in states.items()}


def _real(h: Tensor, mask: Tensor | None) -> Tensor:
    return h.flatten(0, 1) if mask is None else h[mask]
