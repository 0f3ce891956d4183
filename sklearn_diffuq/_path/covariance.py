"""The covariance of the path.

``Sigma_s(h) = v_s(h) (a^2 U_s U_s^T, shared by the tokens + delta^2 D_s, independent)`` with
``v_s(h) = exp(2 b z(rho_s))`` (eqs. 1.2, 1.8 of the user guide). The directions ``U_s`` and the
channel variances ``D_s`` come from the increments of the frozen blocks, so that the scales ``a``
and ``delta`` are in units of what a step changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.context import RealTokens
from sklearn_diffuq._path.distance import (
    GaussianProcessVariance,
    Look,
    StateDistance,
    StateProcess,
    distances,
    standardisation,
)
from sklearn_diffuq._path.statistics import PathStatistics
from sklearn_diffuq._path.time_grid import Interval
from sklearn_diffuq._state import State

N_INDUCING = 512  # states that the Gaussian process of a step is conditioned on


@dataclass(frozen=True)
class NoiseScales:
    """Standard deviations of the path noise, in units of the covariance that they scale.

    Those are the steps' increments, or what the unified transition has learned in their place.

    Attributes
    ----------
    shared : float
        Scale ``a`` of the noise shared by the tokens of an example.
    token : float
        Scale ``delta`` of the noise independent per token.
    distance : float
        Exponent ``b`` with which the standard deviation of the noise and the temperature grow away
        from the training data.
    """

    shared: float = 0.0
    token: float = 0.0
    distance: float = 0.0

    @property
    def any_noise(self) -> bool:
        """Whether the path is anything but its mean."""
        return self.shared > 0 or self.token > 0


NO_NOISE = NoiseScales()


class StateCovariance(nn.Module):
    """Covariance of every step of the path as a function of the state, for unit scales.

    Parameters
    ----------
    intervals : sequence of (int, int), length n_intervals
        The steps it knows, see `steps_of`.
    factors : Tensor of shape (n_intervals, d, r)
        Token-shared directions ``U_s``.
    token_variances : Tensor of shape (n_intervals, d)
        Channel variances ``D_s``.
    distances : dict from int to StateDistance
        Of the states before a block.

    Attributes
    ----------
    blocks : tuple of int
        The blocks before which the distance of a state is known.
    """

    factors: Tensor
    token_variances: Tensor

    def __init__(
        self,
        intervals: Sequence[Interval],
        factors: Tensor,
        token_variances: Tensor,
        distances: Mapping[int, StateDistance],
    ) -> None:
        super().__init__()
        self.intervals = tuple((int(start), int(stop)) for start, stop in intervals)
        self.blocks = tuple(distances)
        self.register_buffer("factors", factors.contiguous())
        self.register_buffer("token_variances", token_variances)
        self.distances = nn.ModuleList(distances.values())

    @property
    def keeps_looks(self) -> bool:
        """Whether `look` only keeps parts of states, and `distances_of` judges them."""
        distances = cast(Sequence[StateDistance], self.distances)
        return all(isinstance(d.process, GaussianProcessVariance) for d in distances)

    def with_token_variances(self, token_variances: Tensor) -> "StateCovariance":
        """Return this covariance with other channel variances; the rest is shared."""
        return StateCovariance(self.intervals, self.factors, token_variances, self._by_block())

    def factor(self, interval: Interval) -> Tensor:
        """Return the directions of a step, (d, r)."""
        return self.factors[self.intervals.index(interval)]

    def token_variance(self, interval: Interval) -> Tensor:
        """Return the channel variances of a step, (d,)."""
        return self.token_variances[self.intervals.index(interval)]

    def look(self, h: Tensor, block: int, real: RealTokens | None) -> Look:
        """Return what the distance needs of the states `h` (n, t, d) before one of `blocks`."""
        return self._by_block()[block].process.look(h, real)

    def distances_of(self, looks: Mapping[int, Look], beyond: Tensor | None = None) -> Tensor:
        """Return ``z(rho)`` (n, len(looks)) of what was looked at before some of the blocks.

        `beyond` (n,) says how far outside of the training range the inputs are.
        """
        by_block = self._by_block()
        return distances([by_block[block] for block in looks], list(looks.values()), beyond)

    def distance(
        self, h: Tensor, block: int, mask: Tensor | None = None, beyond: Tensor | None = None
    ) -> Tensor:
        """Return ``z(rho)`` (n,) of the states `h` (n, t, d) before `block`, one of `blocks`."""
        return self.distances_of({block: self.look(h, block, RealTokens.of(mask))}, beyond)[
            :, 0
        ].to(h.dtype)

    def _by_block(self) -> dict[int, StateDistance]:
        distances = cast(Sequence[StateDistance], self.distances)
        return dict(zip(self.blocks, distances, strict=True))

    def to_state(self) -> State:
        """Return the steps, the covariance of each, and the distances."""
        distances = list(self._by_block().values())
        parts = {str(i): d.process.to_state() for i, d in enumerate(distances)}
        tensors = {"factors": self.factors, "token_variances": self.token_variances}
        tensors |= {f"ordinary.{i}": d.ordinary for i, d in enumerate(distances)}
        config = {
            "intervals": [list(interval) for interval in self.intervals],
            "blocks": list(self.blocks),
            "process": distances[0].process.kind,
        }
        return State(config, tensors).with_parts(processes=State({}).with_parts(**parts))

    @classmethod
    def from_state(
        cls, state: State, process_of: Callable[[State], StateProcess]
    ) -> "StateCovariance":
        """Build the covariance that `to_state` described, with its kind of process."""
        config, tensors, processes = state.config, state.tensors, state.part("processes")
        distances = {
            block: StateDistance(process_of(processes.part(str(i))), tensors[f"ordinary.{i}"])
            for i, block in enumerate(config["blocks"])
        }
        return cls(config["intervals"], tensors["factors"], tensors["token_variances"], distances)


def principal_factors(second_moments: Tensor, rank: int) -> Tensor:
    """Return the leading principal directions, times the standard deviations along them.

    Parameters
    ----------
    second_moments : Tensor of shape (n, d, d)
    rank : int
        Number of directions.

    Returns
    -------
    factors : Tensor of shape (n, d, rank)
    """
    values, vectors = torch.linalg.eigh(second_moments.double())
    kept = slice(values.shape[1] - min(rank, values.shape[1]), None)
    values, vectors = values[:, kept].clamp_min(0), vectors[:, :, kept]
    factors: Tensor = (vectors * values.sqrt()[:, None]).float()
    return factors


def fit_covariance(
    statistics: PathStatistics, noise_rank: int, generator: torch.Generator
) -> StateCovariance:
    """Build the `StateCovariance` of a path.

    ``U_s`` holds the `noise_rank` leading principal directions of the pooled increment, ``D_s``
    the channel variances of the increment (eq. 1.3). Half of the described states condition the
    processes, the other half says what is ordinary.

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
    distances = {}
    for block, states in statistics.states.items():
        process = GaussianProcessVariance.given(states[inducing])
        rho = process.rho(states[ordinary if len(ordinary) else inducing])
        distances[block] = StateDistance(process, standardisation(rho))
    return StateCovariance(statistics.intervals, factors, statistics.token_variance, distances)
