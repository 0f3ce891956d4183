"""Encoded rows and the batches cut from them.

Nothing of size samples x tokens or samples x pixels is ever built: token ids stay ragged, image
transforms run per batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sklearn_diffuq._inputs.columns import Column, Dense, Mask, Ragged
from sklearn_diffuq._inputs.not_finite import NotFiniteError, UnreadableError, rows_not_finite


class EncodedInputs:
    """Encoded rows that can be indexed and turned into batches.

    Parameters
    ----------
    columns : dict of str to column
        One column for each model input, all with the same number of rows. Ragged text without an
        ``attention_mask`` gets one at the end.
    max_length : int, default=None
        The longest text the model can read, in tokens.

    Attributes
    ----------
    lengths : ndarray of shape (n_rows,) or None
        Token count of each row of ragged text, None for other inputs.
    numbers : ndarray of shape (n_rows,) or None
        Number of each row in `source`; None means 0, 1, ..
    source : str
        Name of what the user gave, for messages.
    """

    numbers: np.ndarray | None = None
    source: str = "X"

    def __init__(self, columns: Mapping[str, Column], max_length: int | None = None) -> None:
        self.max_length = max_length
        ragged = [c.lengths for c in columns.values() if c.lengths is not None]
        self.lengths = ragged[0] if ragged else None
        if self.lengths is not None and "attention_mask" not in columns:
            columns = {**columns, "attention_mask": Mask(self.lengths)}
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def names(self) -> list[str]:
        """Names of the model inputs, in the order of a batch."""
        return list(self._columns)

    @property
    def row_size(self) -> int | None:
        """How many numbers a row has, where that is known without making one."""
        shapes = [c.array.shape[1:] for c in self.columns if isinstance(c, Dense)]
        return sum(map(math.prod, shapes)) if len(shapes) == len(self.columns) else None

    @property
    def columns(self) -> list[Column]:
        """The model inputs."""
        return list(self._columns.values())

    def in_order(self, names: Sequence[str]) -> "EncodedInputs":
        """Return the same inputs in another order."""
        return self._of({name: self._columns[name] for name in names})

    def _of(self, columns: Mapping[str, Column]) -> "EncodedInputs":
        """Return other columns of the same rows."""
        inputs = EncodedInputs(columns, self.max_length)
        inputs.numbers, inputs.source = self.numbers, self.source
        return inputs

    def padded_left(self) -> "EncodedInputs":
        """Return the same inputs, with what is ragged padded on the left instead of the right."""
        columns = {
            name: column.padded_left() if isinstance(column, (Ragged, Mask)) else column
            for name, column in self._columns.items()
        }
        return self._of(columns)

    def take(self, rows: ArrayLike) -> "EncodedInputs":
        """Return the given rows, in the given order, as new inputs.

        Parameters
        ----------
        rows : array-like of int
            Row positions.

        Returns
        -------
        inputs : EncodedInputs
            The selected rows.
        """
        rows = np.asarray(rows, dtype=np.intp)
        columns = {name: column.take(rows) for name, column in self._columns.items()}
        numbers = rows if self.numbers is None else self.numbers[rows]
        return EncodedInputs(columns, self.max_length).counted(numbers, self.source)

    def counted(self, numbers: np.ndarray, source: str) -> "EncodedInputs":
        """Set the numbers that messages name the rows by, and return the inputs themselves."""
        self.numbers, self.source = numbers, source
        return self

    def refusal(self, rows: np.ndarray) -> NotFiniteError:
        """Return the error for rows whose outputs are not finite, after a look at their inputs."""
        inputs = self.batch(rows[:1])
        bad = [name for name, x in inputs.items() if len(rows_not_finite(x))]
        if bad:
            what = (
                f"The model's input {bad[0]!r} is not finite there, as preprocessing made it: a "
                "constant image, for example, has no standard deviation to divide by. Correct the "
                "preprocessing, or leave out these rows."
            )
        else:
            what = (
                "The model's outputs or states are not finite there, though its inputs are: they "
                "may be too large for it, or its weights may be damaged. Scale the inputs as the "
                "model was trained, repair the weights, or leave out these rows."
            )
        numbers = rows if self.numbers is None else self.numbers[rows]
        return NotFiniteError(numbers, what, self.source)

    def few(self, device: str | torch.device) -> dict[str, Tensor]:
        """Return a batch to look at the model with: a few rows, two at least.

        The shortest and the longest text ensure padding. Rows that are not finite are refused.
        """
        rows = np.arange(min(len(self), 4))
        if self.lengths is not None:
            rows = np.unique([self.lengths.argmin(), self.lengths.argmax(), *rows])
        rows = rows if len(rows) > 1 else np.repeat(rows, 2)
        batch = self.batch(rows, device=device)
        for values in batch.values():
            bad = rows_not_finite(values)
            if len(bad):
                raise self.refusal(np.unique(rows[bad]))
        return batch

    def batch(
        self, rows: ArrayLike, length: int | None = None, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """Return the model inputs of some rows.

        Parameters
        ----------
        rows : array-like of int
            Row positions; a row may occur more than once.
        length : int, default=None
            Number of tokens that text is padded to; None means the longest of the rows.
        device : str or torch.device, default="cpu"
            Where the tensors go.

        Returns
        -------
        batch : dict of str to Tensor
            The tensors, first axis ``len(rows)``. Ragged text brings its ``attention_mask``.
        """
        rows = np.asarray(rows, dtype=np.intp)
        if self.lengths is not None and length is None:
            length = int(self.lengths[rows].max())
        try:
            batch = {name: column.tensor(rows, length) for name, column in self._columns.items()}
        except UnreadableError as error:
            bad = error.rows if self.numbers is None else self.numbers[error.rows]
            raise UnreadableError(bad, error.what, self.source) from error.__cause__
        if torch.device(device).type == "cuda":  # from pinned memory, while the device computes
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


@dataclass(frozen=True)
class LabelledInputs:
    """Rows with what a loss needs of them.

    Attributes
    ----------
    inputs : EncodedInputs of length n
    y : torch.Tensor of shape (n,)
        Class indices.
    weight : torch.Tensor of shape (n,)
        Sample weights.
    """

    inputs: EncodedInputs
    y: Tensor
    weight: Tensor

    @classmethod
    def of(cls, inputs: EncodedInputs, y: ArrayLike, weight: ArrayLike) -> "LabelledInputs":
        """Take class indices and weights from arrays."""
        return cls(inputs, torch.as_tensor(y), torch.as_tensor(weight, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: ArrayLike) -> "LabelledInputs":
        """Return the rows `rows` as a new object."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.intp))
        return LabelledInputs(self.inputs.take(rows), self.y[index], self.weight[index])
