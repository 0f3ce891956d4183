"""Stage 2: the probability path, a chain of Gaussian transitions through the depth of a model.

Time runs over the blocks of the wrapped model, ``0 = l_0 < l_1 < .. < l_S = L``. One step is
``h_{s+1} ~ N(F_s(h_s), Sigma_s(h_s))``; `GaussianTransition` is that law for one batch,
`GaussianPath` makes it from a mean function and a covariance.
"""

from typing import Protocol

import torch
from torch import Tensor

from sklearn_diffuq._path.gaussian import GaussianTransition


class Mean(Protocol):
    """A transition mean: the frozen blocks, or the unified network."""

    n_steps: int
    grid: tuple

    def __call__(self, h: Tensor, step: int, context) -> Tensor: ...


class BlockwiseMean:
    """The frozen mean ``F_s``: blocks ``l_s .. l_{s+1} - 1`` of the wrapped model.

    Parameters
    ----------
    backbone : Backbone
    grid : tuple of int, length ``n_steps + 1``
    """

    def __init__(self, backbone, grid):
        self.backbone = backbone
        self.grid = grid
        self.n_steps = len(grid) - 1

    def on(self, grid):
        """Return the same blocks on another time grid."""
        return BlockwiseMean(self.backbone, grid)

    def __call__(self, h, step, context):
        for block in range(self.grid[step], self.grid[step + 1]):
            h = self.backbone.block(block, h, context)
        return h


class GaussianPath:
    """A chain of Gaussian transitions: any `Mean` with a covariance around it.

    Parameters
    ----------
    mean : Mean
    covariance : StateCovariance or None
        None is the deterministic path: every covariance is zero.

    Attributes
    ----------
    judged : list of int
        Times whose states tell how far a row is from the training data. What changes the embedding
        need not change what the model makes of it: it counts only where no other state is known.
    """

    def __init__(self, mean, covariance=None):
        self.mean = mean
        self.covariance = covariance
        self.n_steps = mean.n_steps
        known = [] if covariance is None else covariance.processes
        times = [t for t, block in enumerate(mean.grid) if str(block) in known]
        self.judged = times[1:] or times

    def to(self, device):
        """Move what belongs to the path, not the wrapped model, to `device`; return the path."""
        for part in (self.mean, self.covariance):
            if isinstance(part, torch.nn.Module):
                part.to(device)
        return self

    def on(self, grid):
        """Return the same path on another time grid that its parts know."""
        return GaussianPath(self.mean.on(grid), self.covariance.on(grid))

    def with_scales(self, scales):
        """Return the same path with other `NoiseScales`."""
        return GaussianPath(self.mean, self.covariance.replace(scales=scales))

    def distance(self, h, time, context):
        """Return the distance (n,) to the training data of the states `h` at a time, or None."""
        return self.covariance.distance(h, self.mean.grid[time], context.mask)

    def mean_distance(self, distances):
        """Return the mean (n,) over the judged ones among the distances (n,) at all times."""
        return torch.stack([distances[t] for t in self.judged], 1).mean(1)

    def __call__(self, h, step, context):
        """Return the `GaussianTransition` from state `h` (n, t, d) at time `step`."""
        mean = self.mean(h, step, context)
        zero = torch.zeros(len(h), device=h.device)
        if self.covariance is None:
            factor = h.new_zeros(h.shape[-1], 1)
            return GaussianTransition(mean, factor, zero, zero[:, None, None], context.mask)
        scales, start, seen = self.covariance.scales, None, []
        if scales.distance > 0:
            if step in self.judged or scales.any_noise:
                start = self.distance(h, step, context)
            if step in self.judged:
                seen.append(start)
            if step == self.n_steps - 1 and self.n_steps in self.judged:
                seen.append(self.distance(mean, self.n_steps, context))
        v = zero + 1 if start is None else self.covariance.growth(start)
        shared, token = self.covariance(v, step)
        factor = self.covariance.factor(step)
        distance = torch.stack(seen, 1) if seen else None
        return GaussianTransition(mean, factor, shared, token, context.mask, distance)
