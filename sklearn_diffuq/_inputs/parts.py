"""The training part and the held-out part of the rows of a fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_diffuq._inputs.dataset_rows import rows_and_labels
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.not_finite import counted_in
from sklearn_diffuq._inputs.rows import (
    calibration_split,
    check_rows,
    positive_rows,
    safe_indexing,
    warn_of_few_rows,
)


@dataclass(frozen=True)
class Part:
    """Some of the rows that the user gave.

    Attributes
    ----------
    X : as given, of length n
    y : ndarray of shape (n,)
    weight : ndarray of shape (n,)
    numbers : ndarray of shape (n,)
        Their numbers in what was given, by which messages name them.
    source : str
        What that was.
    """

    X: Any
    y: np.ndarray
    weight: np.ndarray
    numbers: np.ndarray
    source: str = "X"

    @property
    def rows(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """The rows with their labels and weights."""
        return self.X, self.y, self.weight

    def take(self, rows: np.ndarray) -> "Part":
        """Return some of the rows."""
        weight, numbers = self.weight[rows], self.numbers[rows]
        return Part(safe_indexing(self.X, rows), self.y[rows], weight, numbers, self.source)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Have errors about these rows name them by their numbers."""
        with counted_in(self.numbers, self.source):
            yield

    def name(self, labelled: LabelledInputs) -> LabelledInputs:
        """Have later errors about these rows, encoded, name them by their numbers."""
        labelled.inputs.counted(self.numbers, self.source)
        return labelled


def parts_of(
    given: tuple[Any, ArrayLike, ArrayLike | None],
    held_out: tuple[Any, ArrayLike | None],
    fraction: float,
    seed: int,
) -> tuple[Part, Part]:
    """Return the training part and the held-out part.

    Parameters
    ----------
    given : tuple of X, y and sample_weight
    held_out : tuple of X_calibration and y_calibration
        Both None to hold out a `fraction` of the rows.
    fraction : float
    seed : int
    """
    (X, y), sample_weight = rows_and_labels(*given[:2]), given[2]
    held_out = rows_and_labels(*held_out)
    numbers = positive_rows(y, sample_weight)
    rows = Part(*check_rows(X, y, sample_weight), numbers)
    if held_out[0] is None:
        train, held = calibration_split(rows.y, fraction, seed)
        return rows.take(train), rows.take(held)
    checked = check_rows(*held_out, None, "X_calibration")
    warn_of_few_rows(checked[1], np.unique(rows.y), " in X_calibration")
    return rows, Part(*checked, np.arange(len(checked[1])), "X_calibration")
