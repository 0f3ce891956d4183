"""Distance of a state to the training states: the posterior variance of a Gaussian process."""

import torch
from torch import nn


def describe(h, mask=None):
    """Return the description of a state on which distances are measured, (n, 3d).

    First token, mean and standard deviation over the real tokens, each of unit length.
    """
    if mask is None:
        mean = h.mean(1)
        std = (h - mean[:, None]).square().mean(1).sqrt()  # many times faster than Tensor.std
    else:
        weight = mask[..., None] / mask.sum(1).clamp_min(1)[:, None, None]
        mean = (h * weight).sum(1)
        std = ((h - mean[:, None]).square() * weight).sum(1).sqrt()
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

    def rho(self, x):
        """Return the posterior variance at points `x` (n, p), in [0, 1], float64."""
        x = x.double()
        k = torch.cdist(x, self.states).div_(-self.length).exp_()
        return (1 - ((k @ self.precision) * k).sum(1)).clamp(0, 1)

    def forward(self, h, mask=None):
        """Return the posterior variance (n,) at the descriptions of the states `h` (n, t, d)."""
        return self.rho(describe(h, mask))


def standardisation(rho):
    """Return mean and standard deviation of `rho` (n,), shape (2,)."""
    return torch.stack([rho.mean(), rho.std(correction=0).clamp_min(1e-3)])
