"""Numbers of a table -> numbers of unit scale, by their ranks among the training rows."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import norm

from sklearn_diffuq._state import State

MAX_QUANTILE = 3.0  # largest absolute value of a mapped number
MAX_KNOTS = 1000  # of a column
_FLOAT32, _FLOAT64 = 2.0**-22, 2.0**-48  # relative differences that are rounding


class NumberMap:
    """Map the numbers of each column to normal quantiles, continuously.

    Equal training values share one knot, at the middle of their ranks, and the map is linear
    between knots. A value that changes by rounding therefore changes by rounding. The map of a
    column is that of any multiple of it. Outside of the training range the mapped number stays
    what it is at the end; `beyond` says how far outside a row is.

    Parameters
    ----------
    knots : sequence of ndarray
        Increasing values of each column: none where all are missing, one where all are equal.
    quantiles : sequence of ndarray
        What they are mapped to.
    ranges : ndarray of shape (n_columns, 3)
        Smallest value, median and largest value of each column.
    """

    def __init__(
        self, knots: Sequence[np.ndarray], quantiles: Sequence[np.ndarray], ranges: np.ndarray
    ) -> None:
        self.knots, self.quantiles, self.ranges = list(knots), list(quantiles), ranges

    @classmethod
    def fit(cls, numbers: np.ndarray) -> "NumberMap":
        """Learn the map of each column of `numbers` (n, n_columns), which may hold NaN."""
        known = [column[~np.isnan(column)] for column in numbers.T]
        maps = [_knots(column) for column in known]
        ranges = [np.quantile(c, [0, 0.5, 1]) if len(c) else np.zeros(3) for c in known]
        return cls(
            [knots for knots, _ in maps],
            [quantiles for _, quantiles in maps],
            np.array(ranges).reshape(-1, 3),
        )

    @property
    def constant(self) -> np.ndarray:
        """Whether each column has no two values, (n_columns,)."""
        return np.array([len(knots) < 2 for knots in self.knots], dtype=bool)

    def transform(self, numbers: np.ndarray) -> np.ndarray:
        """Return the mapped `numbers` (n, n_columns).

        NaN stays NaN. A constant column is 0, or NaN if it had no value at all.
        """
        mapped = np.full(numbers.shape, np.nan)
        for j, (knots, quantiles) in enumerate(zip(self.knots, self.quantiles, strict=True)):
            if len(knots) > 1:
                mapped[:, j] = np.interp(numbers[:, j], knots, quantiles)
            elif len(knots):
                mapped[:, j] = np.where(np.isnan(numbers[:, j]), np.nan, 0.0)
        return mapped

    def beyond(self, numbers: np.ndarray) -> np.ndarray:
        """Return how far outside of the training range each row is, (n,); eq. 1.11.

        The root mean square over columns of log(1 + u), with the distance u to the range in units
        of that from the median to the end. Zero inside.
        """
        used = ~self.constant
        if not used.any():
            return np.zeros(len(numbers))
        low, middle, high = self.ranges[used].T
        down = np.where(middle > low, middle - low, high - low)
        up = np.where(high > middle, high - middle, high - low)
        with np.errstate(over="ignore"):
            x = numbers[:, used]
            outside = np.maximum((low - x) / down, (x - high) / up)
        outside = np.clip(np.nan_to_num(outside, nan=0.0), 0.0, None)
        return np.sqrt(np.square(np.log1p(outside)).mean(1))

    def to_state(self) -> State:
        """Return knots, quantiles and ranges; nothing if there are no columns."""
        if not self.knots:
            return State({})
        return State(
            {"n_knots": [len(knots) for knots in self.knots]},
            {
                "knots": torch.from_numpy(np.concatenate(self.knots)),
                "quantiles": torch.from_numpy(np.concatenate(self.quantiles)),
                "ranges": torch.from_numpy(self.ranges),
            },
        )

    @classmethod
    def from_state(cls, state: State) -> "NumberMap":
        """Build the map that `to_state` described."""
        if not state.tensors:
            return cls([], [], np.empty((0, 3)))
        ends = np.cumsum(state.config["n_knots"], dtype=np.intp)
        tensors = {name: value.numpy() for name, value in state.tensors.items()}
        return cls(
            np.split(tensors["knots"], ends)[:-1],
            np.split(tensors["quantiles"], ends)[:-1],
            tensors["ranges"],
        )


def _knots(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the knots of a column without NaN, and the normal quantiles of their mid-ranks."""
    values, counts = np.unique(column, return_counts=True)
    if not len(values):
        return values, values
    above = np.cumsum(counts) / len(column)  # share of the rows up to and including a value
    below = above - counts / len(column)
    rank = (above + below) / 2
    if len(values) > MAX_KNOTS:
        # of each of the evenly spaced ranks, the value before it and the value after it
        wanted = np.linspace(rank[0], rank[-1], MAX_KNOTS // 2)
        after = np.searchsorted(rank, wanted).clip(1, len(rank) - 1)
        kept = np.unique(np.concatenate([after - 1, after]))
        values, above, below = values[kept], above[kept], below[kept]
    starts = _distinct(values)
    ends = np.append(starts[1:], len(values)) - 1
    quantiles = norm.ppf((below[starts] + above[ends]) / 2)
    return values[starts], np.clip(quantiles, -MAX_QUANTILE, MAX_QUANTILE)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Return where increasing values differ by more than rounding from the last one kept.

    Rounding is that of float32, or of float64 in a column that varies little around its mean, where
    float32 would not tell its values apart.
    """
    size = np.abs(values)
    tolerance = np.maximum(
        _FLOAT32 * np.minimum(size, values[-1] - values[0]), _FLOAT64 * size.max()
    ).tolist()
    starts, last = [0], values[0]
    for i, value in enumerate(values.tolist()):
        if value - last > tolerance[i]:
            starts.append(i)
            last = value
    return np.array(starts)
