"""The map of numbers that earlier versions have saved, which jumps at equal training values."""

import numpy as np
import torch
from scipy.stats import norm

from sklearn_diffuq._inputs.number_map import MAX_QUANTILE
from sklearn_diffuq._state import State

_EDGE = 1e-7  # values this close to the ends of the range counted as the ends


class StepMap:
    """Map numbers as `sklearn.preprocessing.QuantileTransformer` does; read, never fitted.

    Parameters
    ----------
    quantiles : ndarray of shape (n_quantiles, n_columns)
        Values of each column.
    references : ndarray of shape (n_quantiles,)
        Their ranks in [0, 1].
    """

    def __init__(self, quantiles: np.ndarray, references: np.ndarray) -> None:
        self.quantiles, self.references = quantiles, references

    @property
    def constant(self) -> np.ndarray:
        """All false: these models read every column."""
        return np.zeros(self.quantiles.shape[1], dtype=bool)

    def transform(self, numbers: np.ndarray) -> np.ndarray:
        """Return the mapped `numbers` (n, n_columns); NaN stays NaN."""
        mapped = np.empty(numbers.shape)
        for j, knots in enumerate(self.quantiles.T):
            x = numbers[:, j]
            # the mean of the smallest and the largest rank of equal values
            rank = np.interp(x, knots, self.references)
            rank = (rank - np.interp(-x, -knots[::-1], -self.references[::-1])) / 2
            rank[x + _EDGE > knots[-1]] = 1.0
            rank[x - _EDGE < knots[0]] = 0.0
            mapped[:, j] = np.clip(norm.ppf(rank), -MAX_QUANTILE, MAX_QUANTILE)
        return mapped

    def beyond(self, numbers: np.ndarray) -> None:
        """Return None: these models do not know how far outside of its range a number is."""

    def to_state(self) -> State:
        """Return quantiles and references."""
        return State(
            {},
            {
                "quantiles": torch.from_numpy(self.quantiles),
                "references": torch.from_numpy(self.references),
            },
        )

    @classmethod
    def from_state(cls, state: State) -> "StepMap":
        """Build the map that was saved."""
        return cls(state.tensors["quantiles"].numpy(), state.tensors["references"].numpy())
