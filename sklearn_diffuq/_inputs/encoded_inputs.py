"""Encoded rows and the batches cut from them.

Nothing of size samples x tokens or samples x pixels is ever built: token ids stay ragged, image
transforms run per batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


class Column(Protocol):
    """One model input of all samples."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Token count of each sample, None unless it is ragged text."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> "Column":
        """Return the given rows, in the given order."""
        ...

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        """Return the given rows as a tensor, ragged text padded to `length` tokens."""
        ...


class Dense:
    """Rows of one array; floats become float32 and integers int64 when a batch is made."""

    lengths: np.ndarray | None = None

    def __init__(self, array: np.ndarray, scale: float | None = None) -> None:
        self.array, self.scale = array, scale

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray) -> "Dense":
        return Dense(self.array[rows], self.scale)

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        values = self.array[rows]
        kinds = {"f": np.float32, "u": np.int64, "i": np.int64, "b": np.bool_}
        tensor = torch.from_numpy(values.astype(kinds[values.dtype.kind], order="C"))
        return tensor if self.scale is None else tensor * self.scale


class Ragged:
    """Rows of different lengths, padded on the right when a batch is made."""

    def __init__(self, items: list[np.ndarray], pad: int) -> None:
        self.items, self.pad = items, pad
        self.lengths = np.fromiter((len(item) for item in items), dtype=np.int64, count=len(items))

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> "Ragged":
        return Ragged([self.items[i] for i in rows], self.pad)

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        length = max(len(self.items[i]) for i in rows) if length is None else length
        padded = np.full((len(rows), length), self.pad, dtype=np.int64)
        for out, i in zip(padded, rows):
            out[: len(self.items[i])] = self.items[i]
        return torch.from_numpy(padded)


class Images:
    """Images turned into pixels one by one, when a batch is made."""

    lengths: np.ndarray | None = None

    def __init__(self, items: Sequence[Any] | np.ndarray, transform: Callable) -> None:
        self.items, self.transform = items, transform

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> "Images":
        return Images([self.items[i] for i in rows], self.transform)

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        # one image at a time: the pixels of a row must not depend on its neighbours
        return torch.stack([pixels_of(self.items[i], self.transform) for i in rows])


def pixels_of(item: Any, transform: Any) -> Tensor:
    """Apply a callable, or a Hugging Face image processor, to one image."""
    if hasattr(transform, "preprocess"):
        return transform(images=item, return_tensors="pt")["pixel_values"][0].float()
    pixels = transform(item)
    return (pixels if isinstance(pixels, torch.Tensor) else torch.as_tensor(pixels)).float()


class EncodedInputs:
    """Encoded rows that can be indexed and turned into batches.

    Parameters
    ----------
    columns : dict of str to column
        One column for each model input, all with the same number of rows.
    max_length : int, default=None
        The longest text the model can read, in tokens.

    Attributes
    ----------
    lengths : ndarray of shape (n_rows,) or None
        Token count of each row of ragged text, None for other inputs.
    """

    def __init__(self, columns: Mapping[str, Column], max_length: int | None = None) -> None:
        self._columns = columns
        self.max_length = max_length
        ragged = [c.lengths for c in columns.values() if c.lengths is not None]
        self.lengths = ragged[0] if ragged else None

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

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
        if self.lengths is not None and length is not None:
            mask = np.arange(length) < self.lengths[rows, None]
            batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
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
