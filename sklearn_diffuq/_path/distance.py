"""Distance of a state to the training states, and what grows with it.

The distance is the standardised posterior variance of a Gaussian process: ordinary on data like the
training data, large away from it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.context import RealTokens
from sklearn_diffuq._state import State

NEIGHBOUR = 10  # the length scale is the median distance of a state to this neighbour
PROCESS_NOISE = 0.1  # noise variance of the Gaussian processes
_RESOLUTION = 4096  # steps per unit of standardised distance
_FAR = 8.0  # standardised distance beyond which states count as equally far


Look: TypeAlias = tuple[Tensor, ...]  # what a process keeps of states, each (n, ...)


def describe(h: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the features of a state on which distances are measured, (n, 3d).

    First token, mean and standard deviation over the real tokens, each of unit length (eq. 1.4).
    """
    return _described([_look_at_tokens(h, RealTokens.of(mask))])[0]


def _look_at_tokens(h: Tensor, real: RealTokens | None) -> Look:
    """Return first token, mean and variance over the real tokens, each of shape (n, 1, d)."""
    if real is None:
        mean = h.mean(1, keepdim=True)
        variance = (h - mean).square().mean(1, keepdim=True)
    else:
        tokens = h.masked_fill(real.padding, 0)  # padding may hold anything, also NaN
        weights = real.weights.to(h.dtype)
        mean = torch.bmm(weights, tokens)
        variance = torch.bmm(weights, (tokens - mean).square())
    return h[:, :1], mean, variance


def _described(looks: Sequence[Look]) -> Tensor:
    """Return the features (B, n, 3d) of what B looks at states have seen."""
    parts = torch.cat([part for parts in zip(*looks, strict=True) for part in parts], 1)
    parts[:, 2 * len(looks) :].sqrt_()
    unit = nn.functional.normalize(parts, dim=2).unflatten(1, (3, len(looks)))
    return unit.permute(2, 0, 1, 3).flatten(2)


def widening(exponent: float | Tensor, distance: Tensor) -> Tensor:
    """Return ``exp(exponent * distance)``: how much wider than at an ordinary distance, 0.

    The factor of a temperature (eq. 5.2), or of a standard deviation; with twice the exponent, that
    of a variance (eq. 1.8).
    """
    return torch.exp(exponent * distance)


class StateProcess(Protocol):
    """A module that maps states to the posterior variance of a Gaussian process.

    In two parts: `look` keeps of a state what the distance needs, while the path is followed;
    `variances` judges what several processes have seen, afterwards and together.
    """

    kind: ClassVar[str]

    def look(self, h: Tensor, real: RealTokens | None) -> Look: ...

    @staticmethod
    def variances(processes: Sequence[Any], looks: Sequence[Look]) -> Tensor: ...

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
    squares: Tensor
    length: Tensor
    precision: Tensor

    def __init__(self, states: Tensor, length: Tensor, precision: Tensor) -> None:
        super().__init__()
        self.register_buffer("states", states)
        self.register_buffer("squares", states.square().sum(1), persistent=False)
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
        return _posterior_variances([self], x[None])[0]

    def look(self, h: Tensor, real: RealTokens | None) -> Look:
        """Return first token, mean and variance over the tokens of `h`, each (n, 1, d)."""
        return _look_at_tokens(h, real)

    @staticmethod
    def variances(processes: Sequence["GaussianProcessVariance"], looks: Sequence[Look]) -> Tensor:
        """Return the posterior variances (n, B) of what each of B processes has looked at."""
        return _posterior_variances(processes, _described(looks)).T

    def to_state(self) -> State:
        """Return states, length scale and precision."""
        return State({}, self.state_dict())

    @classmethod
    def from_state(cls, state: State) -> "GaussianProcessVariance":
        """Build the process that `to_state` described."""
        return cls(**state.tensors)


def _posterior_variances(processes: Sequence[GaussianProcessVariance], x: Tensor) -> Tensor:
    """Return the posterior variances (B, n) of B processes at the points (B, n, p) of each."""
    x = x.double()
    lengths = torch.stack([p.length for p in processes])[:, None, None]
    # What torch.cdist does, without a copy of the states in every call.
    products = [torch.addmm(p.squares, y, p.states.T, alpha=-2) for p, y in zip(processes, x)]
    squares = torch.stack(products) + x.square().sum(2, keepdim=True)
    k = torch.exp(squares.clamp_min_(0).sqrt_() / -lengths)
    explained = torch.stack([kernel @ p.precision for p, kernel in zip(processes, k, strict=True)])
    return (1 - (explained * k).sum(2)).clamp(0, 1)


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

    def forward(
        self, h: Tensor, mask: Tensor | None = None, beyond: Tensor | None = None
    ) -> Tensor:
        """Return ``z(rho)`` of the states `h` (n, t, d), shape (n,); see `distances`."""
        return distances([self], [self.process.look(h, RealTokens.of(mask))], beyond)[:, 0].to(
            h.dtype
        )


@torch.no_grad()  # rounding has no gradient anyway
def distances(
    parts: Sequence[StateDistance], looks: Sequence[Look], beyond: Tensor | None = None
) -> Tensor:
    """Return ``z(rho)`` of the states that each part has looked at, (n, len(parts)); eq. 1.7.

    It grows with how far outside of the training range the inputs are, `beyond` (n,).
    """
    processes = [part.process for part in parts]
    rho = processes[0].variances(processes, looks)
    mean, std = torch.stack([part.ordinary for part in parts], 1)
    z = (rho - mean) / std
    if beyond is not None:
        z = z + beyond.double()[:, None]
    # The last bits of a matrix product depend on a row's place in the batch; z must not.
    return (torch.round(z * _RESOLUTION) / _RESOLUTION).clamp(-_FAR, _FAR)


def standardisation(rho: Tensor) -> Tensor:
    """Return mean and standard deviation of `rho` (n,), shape (2,)."""
    return torch.stack([rho.mean(), rho.std(correction=0).clamp_min(1e-3)])
