"""Encoded rows and the batches cut from them.

Nothing of size samples x tokens or samples x pixels is ever built: token ids stay ragged, image
transforms run per batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sklearn_diffuq._inputs.columns import Column, Mask, Ragged


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
    """

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

    def in_order(self, names: Sequence[str]) -> "EncodedInputs":
        """Return the same inputs in another order."""
        return EncodedInputs({name: self._columns[name] for name in names}, self.max_length)

    def padded_left(self) -> "EncodedInputs":
        """Return the same inputs, with what is ragged padded on the left instead of the right."""
        columns = {
            name: column.padded_left() if isinstance(column, (Ragged, Mask)) else column
            for name, column in self._columns.items()
        }
        return EncodedInputs(columns, self.max_length)

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
        return EncodedInputs(columns, self.max_length)

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
        batch = {name: column.tensor(rows, length) for name, column in self._columns.items()}
        return {name: tensor.to(device) for name, tensor in batch.items()}


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
