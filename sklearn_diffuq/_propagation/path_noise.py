"""The standard normal draws of sampled paths."""

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from sklearn_diffuq._path.path import GaussianPath

_POSITIONS = 32  # token noise is drawn for this many positions at once


class PathNoise:
    """Standard normal draws of K paths, the same for every row.

    Common random numbers make a row's answer independent of its batch and of the order of the
    rows; the price is that the Monte Carlo errors of different rows are dependent.
    The paths come in antithetic pairs, z and -z, whose first-order errors cancel. The token-shared
    draws are scrambled Sobol points, the token draws pseudo-random.

    Parameters
    ----------
    n_paths : int
        Number of paths K.
    n_steps : int
    rank : int
        Number of token-shared directions per step.
    width : int
        Channels d of a state.
    seed : int

    Attributes
    ----------
    shared : Tensor of shape (n_paths, n_steps, rank)
    """

    def __init__(self, n_paths: int, n_steps: int, rank: int, width: int, seed: int) -> None:
        self.n_paths = n_paths
        self.n_drawn = (n_paths + 1) // 2
        self.shape = n_steps, rank, width
        self.seed = seed
        points = np.zeros((self.n_drawn, 0))
        if rank:
            engine = qmc.MultivariateNormalQMC(
                np.zeros(n_steps * rank), engine=qmc.Sobol(n_steps * rank, rng=seed)
            )
            points = engine.random(2 ** int(np.ceil(np.log2(self.n_drawn))))[: self.n_drawn]
        drawn = torch.as_tensor(points, dtype=torch.float32).reshape(self.n_drawn, n_steps, rank)
        self.shared = self._antithetic(drawn)
        self._tokens: dict[tuple[int, int], Tensor] = {}

    @classmethod
    def of(cls, path: GaussianPath, n_paths: int, seed: int) -> "PathNoise":
        """Return the noise that fits the shapes of a path."""
        width, rank = path.covariance.factor(path.steps[0]).shape
        return cls(n_paths, path.n_steps, rank, width, seed)

    def redrawn(self, index: int) -> "PathNoise":
        """Return other draws of as many paths; the same `index` gives the same ones."""
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        return PathNoise(self.n_paths, *self.shape, seed)

    def _antithetic(self, drawn: Tensor) -> Tensor:
        return torch.cat([drawn, -drawn])[: self.n_paths]

    def tokens(self, step: int, n_tokens: int) -> Tensor:
        """Return the token draws of `step`, shape (n_paths, n_tokens, width).

        The draws of a position do not depend on `n_tokens`.
        """
        drawn = [self._chunk(step, i) for i in range(-(-n_tokens // _POSITIONS))]
        return self._antithetic(torch.cat(drawn, 1)[:, :n_tokens])

    def _chunk(self, step: int, index: int) -> Tensor:
        if (step, index) not in self._tokens:
            seed = np.random.SeedSequence([self.seed, step, index]).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            shape = (self.n_drawn, _POSITIONS, self.shape[-1])
            self._tokens[step, index] = torch.randn(shape, generator=generator)
        return self._tokens[step, index]
