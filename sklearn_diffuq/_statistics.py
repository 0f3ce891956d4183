"""Stage 2: one pass of training rows through the frozen blocks, and what it measures.

The pass is streamed: sums are kept, and a few hundred described states, never the states of the
data set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sklearn_diffuq._covariance import describe


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
            self._sums.setdefault(key, _RunningMoments(full=True)).update(x.flatten(0, -2).float())

        return record

    def moments(self):
        """Return the `InputMoments` of everything seen."""
        mean = {key: (m.total / m.n).float() for key, m in self._sums.items()}
        second = {key: (m.square / m.n).float() for key, m in self._sums.items()}
        return InputMoments(mean, second)


@dataclass
class PathStatistics:
    """What one pass over training rows says of the frozen path.

    Attributes
    ----------
    token_variance : Tensor of shape (n_steps, d)
        Variance over tokens of the increment of each step.
    pooled_second_moment : Tensor of shape (n_steps, d, d)
        Covariance over examples of the token mean of the increment.
    states : Tensor of shape (n_steps, n, 3d)
        Described states (see `describe`) that each step arrives at.
    moments : InputMoments or None
    """

    token_variance: Tensor
    pooled_second_moment: Tensor
    states: Tensor
    moments: InputMoments | None


@torch.no_grad()
def collect_statistics(backbone, batches, grid, with_moments):
    """Run training batches through the frozen blocks and measure the path.

    Parameters
    ----------
    backbone : Backbone
    batches : iterable of dict of Tensor
    grid : tuple of int
        Time grid.
    with_moments : bool
        Whether to collect the input moments of the linear layers too.

    Returns
    -------
    statistics : PathStatistics
    """
    tokens = [_RunningMoments() for _ in grid[1:]]
    pooled = [_RunningMoments(full=True) for _ in grid[1:]]
    states = [[] for _ in grid[1:]]
    collector = MomentCollector(backbone.blocks if with_moments else [])
    with collector:
        for batch in batches:
            h, context = backbone.embed(batch)
            collector.mask = context.mask
            for step in range(len(grid) - 1):
                before = h
                for block in range(grid[step], grid[step + 1]):
                    h = backbone.block(block, h, context)
                states[step].append(describe(h, context.mask))
                increment = (h - before).float()
                tokens[step].update(_real(increment, context.mask))
                pooled[step].update(_token_mean(increment, context.mask))
    return PathStatistics(
        torch.stack([m.covariance() for m in tokens]),
        torch.stack([m.covariance() for m in pooled]),
        torch.stack([torch.cat(s) for s in states]),
        collector.moments() if with_moments else None,
    )


def _real(h, mask):
    return h.flatten(0, 1) if mask is None else h[mask]


def _token_mean(h, mask):
    if mask is None:
        return h.mean(1)
    return (h * mask[..., None]).sum(1) / mask.sum(1).clamp_min(1)[:, None]


class _RunningMoments:
    """Mean and covariance (or variance) of rows that come in batches, summed in float64."""

    def __init__(self, full=False):
        self.full = full
        self.n, self.total, self.square = 0, 0.0, 0.0

    def update(self, x):
        self.n += len(x)
        self.total = self.total + x.sum(0).double()
        square = x.T @ x if self.full else x.square().sum(0)
        self.square = self.square + square.double()

    def covariance(self):
        mean = self.total / self.n
        product = torch.outer(mean, mean) if self.full else mean.square()
        covariance = self.square / self.n - product
        # Rounding must not make the variance of a constant channel negative.
        return (covariance if self.full else covariance.clamp_min(0)).float()
