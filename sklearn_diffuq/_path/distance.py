"""Distance of a state to the training states, and what grows with it.

The distance is the standardised posterior variance of a Gaussian process: ordinary on data like the
training data, large away from it.
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.context import mean_over_tokens
from sklearn_diffuq._state import State

NEIGHBOUR = 10  # the length scale is the median distance of a state to this neighbour
PROCESS_NOISE = 0.1  # noise variance of the Gaussian processes
_RESOLUTION = 4096  # steps per unit of standardised distance
_FAR = 8.0  # standardised distance beyond which states count as equally far


def describe(h: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the features of a state on which distances are measured, (n, 3d).

    First token, mean and standard deviation over the real tokens, each of unit length (eq. 1.4).
    """
    mean = mean_over_tokens(h, mask)
    # many times faster than Tensor.std
    std = mean_over_tokens((h - mean[:, None]).square(), mask).sqrt()
    return torch.cat([nn.functional.normalize(x, dim=1) for x in (h[:, 0], mean, std)], 1)


def widening(exponent: float | Tensor, distance: Tensor) -> Tensor:
    """Return ``exp(exponent * distance)``: how much wider than at an ordinary distance, 0.

    The factor of a temperature (eq. 5.2), or of a standard deviation; with twice the exponent, that
    of a variance (eq. 1.8).
    """
    return torch.exp(exponent * distance)


class StateProcess(Protocol):
    """A module that maps states to the posterior variance of a Gaussian process."""

    kind: ClassVar[str]

    def __call__(self, h: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def to_state(self) -> State: ...


class GaussianProcessVariance(nn.Module):
    """Posterior variance of a Gaussian process with a local kernel, given training states.

    ``rho(x) = 1 - k(x, Z) (K_ZZ + noise I)^{-1} k(Z, x)`` with the Matern-1/2 kernel
    ``exp(-||x - z|| / length)`` (eqs. 1.5, 1.6).

    Parameters
    ----------
    states : Tensor of shape (m, p), float64
        Inducing states Z.
    length : Tensor of shape ()
        Length scale of the kernel.
    precision : Tensor of shape (m, m), float64
        Inverse of the kernel matrix of Z with noise.
    """

    kind: ClassVar[str] = "states"
    states: Tensor
    length: Tensor
    precision: Tensor

    def __init__(self, states: Tensor, length: Tensor, precision: Tensor) -> None:
        super().__init__()
        self.register_buffer("states", states)
        self.register_buffer("length", length)
        # laid out as a file keeps it: products with a transposed matrix differ in their last bits
        self.register_buffer("precision", precision.contiguous())

    @classmethod
    def given(
        cls, states: Tensor, neighbour: int = NEIGHBOUR, noise: float = PROCESS_NOISE
    ) -> "GaussianProcessVariance":
        """Condition the process on states (m, p).

        The length scale is the median distance of a state to its neighbour of the given order.
        """
        states = states.double()
        distances = torch.cdist(states, states)
        order = min(neighbour, len(states) - 1)
        length = distances.kthvalue(order + 1, dim=1).values.median().clamp_min(1e-6)
        kernel = torch.exp(-distances / length)
        kernel.diagonal().add_(noise)
        return cls(states, length, torch.linalg.inv(kernel))

    def rho(self, x: Tensor) -> Tensor:
        """Return the posterior variance at points `x` (n, p), in [0, 1], float64."""
        x = x.double()
        k = torch.cdist(x, self.states).div_(-self.length).exp_()
        return (1 - ((k @ self.precision) * k).sum(1)).clamp(0, 1)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the posterior variance (n,) of the states `h` (n, t, d)."""
        return self.rho(describe(h, mask))

    def to_state(self) -> State:
        """Return states, length scale and precision."""
        return State({}, self.state_dict())

    @classmethod
    def from_state(cls, state: State) -> "GaussianProcessVariance":
        """Build the process that `to_state` described."""
        return cls(**state.tensors)


class StateDistance(nn.Module):
    """Standardised distance of the states before one block to the training states there.

    Parameters
    ----------
    process : StateProcess
        Its posterior variance rho is standardised.
    ordinary : Tensor of shape (2,)
        Mean and standard deviation of rho on training states that the process does not know; see
        `standardisation`.
    """

    process: StateProcess
    ordinary: Tensor

    def __init__(self, process: StateProcess, ordinary: Tensor) -> None:
        super().__init__()
        self.process = process
        self.register_buffer("ordinary", ordinary)

    @torch.no_grad()  # rounding has no gradient anyway
    def forward(
        self, h: Tensor, mask: Tensor | None = None, beyond: Tensor | None = None
    ) -> Tensor:
        """Return ``z(rho)`` of the states `h` (n, t, d), shape (n,); eq. 1.7.

        It grows with how far outside of the training range the inputs are, `beyond` (n,).
        """
        mean, std = self.ordinary
        z = (self.process(h, mask) - mean) / std
        if beyond is not None:
            z = z + beyond.double()
        # The last bits of a matrix product depend on a row's place in the batch; z must not.
        return (torch.round(z * _RESOLUTION) / _RESOLUTION).clamp(-_FAR, _FAR).to(h.dtype)


def standardisation(rho: Tensor) -> Tensor:
    """Return mean and standard deviation of `rho` (n,), shape (2,)."""
    return torch.stack([rho.mean(), rho.std(correction=0).clamp_min(1e-3)])
