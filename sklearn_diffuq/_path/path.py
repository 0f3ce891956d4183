"""The probability path: a chain of Gaussian transitions through the depth of a model.

Time runs over the blocks of the wrapped model, ``0 = l_0 < l_1 < .. < l_S = L``. One step is
``h_{s+1} ~ N(F_s(h_s), Sigma_s(h_s))`` (eq. 1.2 of the user guide).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.context import Context
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales, StateCovariance
from sklearn_diffuq._path.distance import Look, widening
from sklearn_diffuq._path.gaussian import GaussianTransition
from sklearn_diffuq._path.mean import Mean
from sklearn_diffuq._path.time_grid import Grid, Interval, steps_of


@dataclass(frozen=True)
class GaussianPath:
    """A mean with a covariance around it, followed on a time grid.

    Attributes
    ----------
    mean : Mean
    covariance : StateCovariance
    grid : tuple of int, length ``n_steps + 1``
    scales : NoiseScales
        Of the noise; all zero is the deterministic path.
    is_watched : bool, default=False
        Whether the scored times are observed even if nothing depends on their distances.
    """

    mean: Mean
    covariance: StateCovariance
    grid: Grid
    scales: NoiseScales = NO_NOISE
    is_watched: bool = False

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.grid) - 1

    @property
    def steps(self) -> tuple[Interval, ...]:
        """The steps as (first block, block after the last)."""
        return steps_of(self.grid)

    @property
    def scored_times(self) -> list[int]:
        """Times whose states say how far a row is from the training data.

        What changes the embedding need not change what the model makes of it: it counts only where
        no other state is known.
        """
        known = self.covariance.blocks
        times = [time for time, block in enumerate(self.grid) if block in known]
        return times[1:] or times

    def on(self, grid: Grid) -> "GaussianPath":
        """Return the same path on another time grid that its parts know."""
        return replace(self, grid=grid)

    def with_scales(self, scales: NoiseScales) -> "GaussianPath":
        """Return the same path with other noise."""
        return replace(self, scales=scales)

    def to(self, device: torch.device) -> "GaussianPath":
        """Move what belongs to the path, not the wrapped model, to `device`; return the path."""
        for part in (self.mean, self.covariance):
            if isinstance(part, nn.Module) and _device(part) != device:
                part.to(device)
        return self

    def distance(self, h: Tensor, time: int, context: Context) -> Tensor | None:
        """Return the distance (n,) of the states at a time, None where it is not known."""
        block = self.grid[time]
        if block not in self.covariance.blocks:
            return None
        return self.covariance.distance(h, block, context.mask, context.beyond)

    @property
    def observed_times(self) -> list[int]:
        """Times whose states are looked at: where anything depends on their distance."""
        times = set(self.scored_times) if self.is_watched or self.scales.distance > 0 else set()
        if self.scales.distance > 0 and self.scales.any_noise:
            times |= set(range(self.n_steps))  # the noise of a step widens
        return [t for t in sorted(times) if self.grid[t] in self.covariance.blocks]

    def observe(self, h: Tensor, time: int, context: Context) -> Tensor | None:
        """Return the distance (n,) of the states at a time if anything depends on it."""
        return self.distance(h, time, context) if time in self.observed_times else None

    def distances_of(self, looks: Mapping[int, Look], beyond: Tensor | None) -> list[Tensor | None]:
        """Return the distance (n,) at each time, from looks (see `StateCovariance`) at some."""
        if not looks:
            return [None] * (self.n_steps + 1)
        by_block = {self.grid[time]: look for time, look in looks.items()}
        found = dict(
            zip(looks, self.covariance.distances_of(by_block, beyond).unbind(1), strict=True)
        )
        return [found.get(time) for time in range(self.n_steps + 1)]

    def mean_distance(self, distances: Sequence[Tensor | None]) -> Tensor | None:
        """Return the mean over the scored times of distances, one for each time (eq. 1.9)."""
        scored = [d for d in (distances[time] for time in self.scored_times) if d is not None]
        return torch.stack(scored, -1).mean(-1) if scored else None

    def __call__(
        self, h: Tensor, step: int, context: Context, distance: Tensor | None
    ) -> GaussianTransition:
        """Return the law of the state after a step.

        Parameters
        ----------
        h : Tensor of shape (n, t, d)
        step : int
        context : Context
        distance : Tensor of shape (n,) or None
            What `observe` returned for `h`.
        """
        return self.law(step, self.mean(h, self.steps[step], context), context, distance)

    def law(
        self, step: int, mean: Tensor, context: Context, distance: Tensor | None
    ) -> GaussianTransition:
        """Return the law of a step with the mean (n, t, d), from states at a distance (n,)."""
        interval, scales = self.steps[step], self.scales
        variance = torch.ones(len(mean), device=mean.device)
        if distance is not None:
            variance = widening(2 * scales.distance, distance)
        token = (scales.token**2 * variance)[:, None, None]
        return GaussianTransition(
            mean,
            self.covariance.factor(interval),
            scales.shared**2 * variance,
            token * self.covariance.token_variance(interval),
            context.mask,
        )


def _device(part: nn.Module) -> torch.device | None:
    tensors = itertools.chain(part.parameters(), part.buffers())
    return next((tensor.device for tensor in tensors), None)
