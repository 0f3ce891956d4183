"""Stage 2: the covariance of the path, and the one pass over the data that estimates it.

``Sigma_s(h) = v_s(h) (a^2 U_s U_s^T, shared by the tokens + delta^2 D_s, independent)`` with
``v_s(h) = exp(b z(rho_s))``. The directions ``U_s`` and the channel variances ``D_s`` come from the
increments of the frozen blocks, so that the scales ``a`` and ``delta`` are in units of what a step
changes; ``rho_s`` is the posterior variance of a Gaussian process at the mean that the step
arrives at, large away from the training data, and ``z`` standardises it.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

N_INDUCING = 512  # states that the Gaussian process of a step is conditioned on
_RESOLUTION = 4096  # steps per unit of standardised distance
_FAR = 8.0  # standardised distance beyond which states count as equally far


@dataclass(frozen=True)
class NoiseScales:
    """Standard deviations of the path noise in units of the steps' increments.

    Attributes
    ----------
    shared : float
        Scale ``a`` of the noise shared by the tokens of an example.
    token : float
        Scale ``delta`` of the noise independent per token.
    distance : float
        Exponent ``b`` with which the variance grows away from the training data.
    """

    shared: float = 0.0
    token: float = 0.0
    distance: float = 0.0


def describe(h, mask=None):
    """Return the description of a state on which distances are measured, (n, 3d).

    First token, mean and standard deviation over the real tokens, each of unit length.
    """
    if mask is None:
        mean, std = h.mean(1), h.std(1, correction=0)
    else:
        weight = mask[..., None] / mask.sum(1).clamp_min(1)[:, None, None]
        mean = (h * weight).sum(1)
        std = ((h - mean[:, None]).square() * weight).sum(1).clamp_min(0).sqrt()
    return torch.cat([nn.functional.normalize(x, dim=1) for x in (h[:, 0], mean, std)], 1)


class GaussianProcessVariance(nn.Module):
    """Posterior variance of a Gaussian process with a local kernel, given training states.

    ``rho(x) = 1 - k(x, Z) (K_ZZ + noise I)^{-1} k(Z, x)`` with the Matern-1/2 kernel
    ``exp(-||x - z|| / length)``.

    Parameters
    ----------
    states : Tensor of shape (m, p)
        Inducing states Z.
    neighbours : int, default=10
        The length scale is the median distance of a state to its neighbour of this order.
    noise : float, default=0.1
        Noise variance of the process.
    """

    def __init__(self, states, neighbours=10, noise=0.1):
        super().__init__()
        states = states.double()
        distances = torch.cdist(states, states)
        order = min(neighbours, len(states) - 1)
        length = distances.kthvalue(order + 1, dim=1).values.median().clamp_min(1e-6)
        kernel = torch.exp(-distances / length)
        kernel.diagonal().add_(noise)
        self.register_buffer("states", states)
        self.register_buffer("length", length)
        # laid out as a file keeps it: products with a transposed matrix differ in their last bits
        self.register_buffer("precision", torch.linalg.inv(kernel).contiguous())

    def forward(self, x):
        """Return rho, shape (n,), in [0, 1], float64."""
        x = x.double()
        k = torch.exp(-torch.cdist(x, self.states) / self.length)
        return (1 - ((k @ self.precision) * k).sum(1)).clamp(0, 1)


class StateCovariance(nn.Module):
    """Covariance of every step of the path as a function of the state.

    Parameters
    ----------
    factors : Tensor of shape (n_steps, d, r)
        Token-shared directions ``U_s``.
    token_variances : Tensor of shape (n_steps, d)
        Channel variances ``D_s``.
    processes : list of GaussianProcessVariance, length n_steps
    ordinary : Tensor of shape (n_steps, 2)
        Mean and standard deviation of rho on training states that the process does not know.
    scales : NoiseScales
    """

    def __init__(self, factors, token_variances, processes, ordinary, scales=None):
        super().__init__()
        self.register_buffer("factors", factors.contiguous())
        self.register_buffer("token_variances", token_variances)
        self.processes = nn.ModuleList(processes)
        self.register_buffer("ordinary", ordinary)
        self.scales = NoiseScales() if scales is None else scales

    def replace(self, scales=None, token_variances=None):
        """Return this covariance with other scales or channel variances; the rest is shared."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other.scales = self.scales if scales is None else scales
        if token_variances is not None:
            other.token_variances = token_variances
        return other

    def distance(self, h, step, mask=None):
        """Return ``z(rho_s)`` of the state `h` (n, t, d) after `step`, shape (n,)."""
        mean, std = self.ordinary[step]
        z = (self.processes[step](describe(h, mask)) - mean) / std
        # The last bits of a matrix product depend on a row's place in the batch; z must not.
        return (torch.round(z * _RESOLUTION) / _RESOLUTION).clamp(-_FAR, _FAR).to(h.dtype)

    def forward(self, h, step, mask=None):
        """Return the shared variance (n,) and the token variance (n, 1, d) of a step to `h`."""
        v = h.new_ones(len(h))
        if self.scales.distance > 0:
            v = torch.exp(self.scales.distance * self.distance(h, step, mask))
        token = (self.scales.token**2 * v)[:, None, None] * self.token_variances[step]
        return self.scales.shared**2 * v, token


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
    values, vectors = torch.linalg.eigh(statistics.pooled_second_moment.double())
    rank = min(noise_rank, values.shape[1])
    values, vectors = values[:, -rank:].clamp_min(0), vectors[:, :, -rank:]
    factors = (vectors * values.sqrt()[:, None]).float()
    n = statistics.states.shape[1]
    order = torch.randperm(n, generator=generator)
    inducing, ordinary = order[: min(N_INDUCING, (n + 1) // 2)], order[(n + 1) // 2 :]
    processes, moments = [], []
    for states in statistics.states:
        process = GaussianProcessVariance(states[inducing])
        rho = process(states[ordinary if len(ordinary) else inducing])
        processes.append(process)
        moments.append(torch.stack([rho.mean(), rho.std(correction=0).clamp_min(1e-3)]))
    return StateCovariance(factors, statistics.token_variance, processes, torch.stack(moments))
