"""Stage 2: one pass of training rows through the frozen blocks, and what it measures.

The pass is streamed: sums are kept, and a few hundred described states, never the states of the
data set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sklearn_diffuq._path.distance import describe


@dataclass
class InputMoments:
    """First and second moment of what enters each linear layer of each block.

    Attributes
    ----------
    mean, second : dict from (block, parameter name) to Tensor of shape (d_in,) and (d_in, d_in)
    """

    mean: dict
    second: dict


def linear_layers(block):
    """Yield (weight name, bias name or None, module, input axis of the weight) of `block`."""
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
            continue
        # Hugging Face's Conv1D (GPT-2) is a linear layer with a transposed weight.
        axis = 0 if type(module).__name__ == "Conv1D" else 1
        prefix = f"{name}." if name else ""
        bias = f"{prefix}bias" if isinstance(getattr(module, "bias", None), Tensor) else None
        yield f"{prefix}weight", bias, module, axis


class MomentCollector:
    """Collect `InputMoments` by hooks on the linear layers while the frozen blocks run.

    Use as a context manager around forward passes; set `mask` before each batch.
    """

    def __init__(self, blocks):
        self.blocks = blocks
        self.mask = None
        self._sums = {}
        self._handles = []

    def __enter__(self):
        for k, block in enumerate(self.blocks):
            for name, _, module, _ in linear_layers(block):
                hook = self._hook((k, name))
                self._handles.append(module.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *exc_info):
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, key):
        def record(module, args):
            x = args[0].detach()
            if self.mask is not None and x.shape[:2] == self.mask.shape:
                x = x[self.mask]
            self._sums.setdefault(key, RunningMoments(full=True)).update(x.flatten(0, -2).float())

        return record

    def moments(self):
        """Return the `InputMoments` of everything seen."""
        mean = {key: (m.total / m.n).float() for key, m in self._sums.items()}
        second = {key: (m.square / m.n).float() for key, m in self._sums.items()}
        return InputMoments(mean, second)


@dataclass
class PathStatistics:
    """What one pass over training rows says of the frozen path, for every step it may take.

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
    moments : InputMoments or None
    """

    intervals: tuple
    token_variance: Tensor
    pooled_second_moment: Tensor
    states: dict
    moments: InputMoments | None


@torch.no_grad()
def collect_statistics(backbone, batches, intervals, with_moments):
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
    states = {block: [] for block in sorted({b for step in intervals for b in step})}
    collector = MomentCollector(backbone.blocks if with_moments else [])
    with collector:
        for batch in batches:
            h, context = backbone.embed(batch)
            collector.mask = context.mask
            path = [h]
            for block in range(backbone.n_blocks):
                path.append(backbone.block(block, path[-1], context))
            for block, described in states.items():
                described.append(describe(path[block], context.mask))
            for i, (start, stop) in enumerate(intervals):
                increment = (path[stop] - path[start]).float()
                tokens[i].update(_real(increment, context.mask))
                pooled[i].update(token_mean(increment, context.mask))
    return PathStatistics(
        tuple(intervals),
        torch.stack([m.covariance() for m in tokens]),
        torch.stack([m.covariance() for m in pooled]),
        {block: torch.cat(described) for block, described in states.items()},
        collector.moments() if with_moments else None,
    )


def _real(h, mask):
    return h.flatten(0, 1) if mask is None else h[mask]


def token_mean(h, mask):
    """Return the mean over real tokens of `h` (n, t, d), shape (n, d)."""
    if mask is None:
        return h.mean(1)
    return (h * mask[..., None]).sum(1) / mask.sum(1).clamp_min(1)[:, None]


class RunningMoments:
    """Mean and covariance (or variance) of rows that come in batches, summed in float64."""

    def __init__(self, full=False):
        self.full = full
        self.n, self.total, self.square = 0, 0.0, 0.0

    def update(self, x):
        """Add rows (n, d)."""
        self.n += len(x)
        self.total = self.total + x.sum(0).double()
        square = x.T @ x if self.full else x.square().sum(0)
        self.square = self.square + square.double()

    def covariance(self):
        """Return the covariance (d, d), or the variance (d,), of all rows."""
        mean = self.total / self.n
        product = torch.outer(mean, mean) if self.full else mean.square()
        covariance = self.square / self.n - product
        # Rounding must not make the variance of a constant channel negative.
        return (covariance if self.full else covariance.clamp_min(0)).float()
