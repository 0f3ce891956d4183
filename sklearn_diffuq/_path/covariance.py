"""Stage 2: the covariance of the path, and the one pass over the data that estimates it.

``Sigma_s(h) = v_s(h) (a^2 U_s U_s^T, shared by the tokens + delta^2 D_s, independent)`` with
``v_s(h) = exp(2 b z(rho_s))``. The directions ``U_s`` and the channel variances ``D_s`` come from
the increments of the frozen blocks, so that the scales ``a`` and ``delta`` are in units of what a
step changes; ``rho_s`` is the posterior variance of a Gaussian process at the state that the step
starts from, large away from the training data, and ``z`` standardises it.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from sklearn_diffuq._path.distance import GaussianProcessVariance, standardisation
from sklearn_diffuq._path.time_grid import steps_of

N_INDUCING = 512  # states that the Gaussian process of a step is conditioned on
_RESOLUTION = 4096  # steps per unit of standardised distance
_FAR = 8.0  # standardised distance beyond which states count as equally far


@dataclass(frozen=True)
class NoiseScales:
    """Standard deviations of the path noise, in units of the covariance that they scale.

    Those are the steps' increments, or what replaces them: see `StateCovariance.replace`.

    Attributes
    ----------
    shared : float
        Scale ``a`` of the noise shared by the tokens of an example.
    token : float
        Scale ``delta`` of the noise independent per token.
    distance : float
        Exponent ``b`` with which all that blurs grows away from the training data: the standard
        deviation of the noise, and the temperature.
    """

    shared: float = 0.0
    token: float = 0.0
    distance: float = 0.0

    @property
    def any_noise(self):
        """Whether the path is anything but its mean."""
        return self.shared > 0 or self.token > 0


class StateCovariance(nn.Module):
    """Covariance of every step of the path as a function of the state.

    Parameters
    ----------
    intervals : sequence of (int, int), length n_intervals
        The steps it knows, see `steps_of`.
    factors : Tensor of shape (n_intervals, d, r)
        Token-shared directions ``U_s``.
    token_variances : Tensor of shape (n_intervals, d)
        Channel variances ``D_s``.
    processes : dict from int to nn.Module
        For the states before a block, a module that maps ``(h, mask)`` to rho.
    ordinary : dict from int to Tensor of shape (2,)
        Mean and standard deviation of rho on training states that the process does not know.
    scales : NoiseScales
    """

    def __init__(self, intervals, factors, token_variances, processes, ordinary, scales=None):
        super().__init__()
        self.intervals = tuple(map(tuple, intervals))
        self.entries = tuple(range(len(self.intervals)))
        self.register_buffer("factors", factors.contiguous())
        self.register_buffer("token_variances", token_variances)
        self.processes = nn.ModuleDict({str(block): p for block, p in processes.items()})
        for block, moments in ordinary.items():
            self.register_buffer(f"ordinary_{block}", moments)
        self.scales = NoiseScales() if scales is None else scales

    def on(self, grid):
        """Return this covariance on a time grid; the rest is shared."""
        other = self.replace()
        other.entries = tuple(self.intervals.index(step) for step in steps_of(grid))
        return other

    def replace(self, scales=None, factors=None, token_variances=None):
        """Return this covariance with other scales or noise; the rest is shared."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other.scales = self.scales if scales is None else scales
        if factors is not None:
            other.factors = factors.contiguous()
        if token_variances is not None:
            other.token_variances = token_variances
        return other

    def factor(self, step):
        """Return the directions of a step, (d, r)."""
        return self.factors[self.entries[step]]

    def token_variance(self, step):
        """Return the channel variances of a step, (d,)."""
        return self.token_variances[self.entries[step]]

    @torch.no_grad()  # rounding has no gradient anyway
    def distance(self, h, block, mask=None):
        """Return ``z(rho)`` of the state `h` (n, t, d) before `block`, (n,); None if unknown."""
        if str(block) not in self.processes:
            return None
        mean, std = getattr(self, f"ordinary_{block}")
        z = (self.processes[str(block)](h, mask) - mean) / std
        # The last bits of a matrix product depend on a row's place in the batch; z must not.
        return (torch.round(z * _RESOLUTION) / _RESOLUTION).clamp(-_FAR, _FAR).to(h.dtype)

    def growth(self, distance):
        """Return ``v``, the factor of the variance at standardised distances."""
        return torch.exp(2 * self.scales.distance * distance)

    def forward(self, v, step):
        """Return shared variance (n,) and token variance (n, 1, d) where the growth is `v` (n,)."""
        token = (self.scales.token**2 * v)[:, None, None] * self.token_variance(step)
        return self.scales.shared**2 * v, token


def principal_factors(second_moments, rank):
    """Return the `rank` leading principal directions, times their standard deviations.

    Parameters
    ----------
    second_moments : Tensor of shape (n, d, d)
    rank : int

    Returns
    -------
    factors : Tensor of shape (n, d, rank)
    """
    values, vectors = torch.linalg.eigh(second_moments.double())
    kept = slice(values.shape[1] - min(rank, values.shape[1]), None)
    values, vectors = values[:, kept].clamp_min(0), vectors[:, :, kept]
    return (vectors * values.sqrt()[:, None]).float()


def fit_covariance(statistics, noise_rank, generator):
    """Build the `StateCovariance` of the frozen path, with all scales at zero.

    ``U_s`` holds the `noise_rank` leading principal directions of the pooled increment, ``D_s``
    the channel variances of the increment. Half of the described states condition the processes,
    the other half tell what is ordinary.

    Parameters
    ----------
    statistics : PathStatistics
    noise_rank : int
    generator : torch.Generator
        Chooses the inducing states.

    Returns
    -------
    covariance : StateCovariance
    """
    factors = principal_factors(statistics.pooled_second_moment, noise_rank)
    n = len(next(iter(statistics.states.values())))
    order = torch.randperm(n, generator=generator)
    inducing, ordinary = order[: min(N_INDUCING, (n + 1) // 2)], order[(n + 1) // 2 :]
    processes, moments = {}, {}
    for block, states in statistics.states.items():
        processes[block] = GaussianProcessVariance(states[inducing])
        rho = processes[block].rho(states[ordinary if len(ordinary) else inducing])
        moments[block] = standardisation(rho)
    return StateCovariance(
        statistics.intervals, factors, statistics.token_variance, processes, moments
    )
