"""Encoded rows and the batches cut from them.

Nothing of size samples x tokens or samples x pixels is ever built: token ids stay ragged, image
transforms run per batch.
"""

from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["EncodedInputs", "LabelledInputs", "inference_batches", "training_batches"]


class Dense:
    """Rows of one array; floats become float32 and integers int64 when a batch is made."""

    lengths = None

    def __init__(self, array, scale=None):
        self.array, self.scale = array, scale

    def __len__(self):
        return len(self.array)

    def take(self, rows):
        return Dense(self.array[rows], self.scale)

    def tensor(self, rows, length):
        values = self.array[rows]
        kinds = {"f": np.float32, "u": np.int64, "i": np.int64, "b": np.bool_}
        tensor = torch.from_numpy(values.astype(kinds[values.dtype.kind], order="C"))
        return tensor if self.scale is None else tensor * self.scale


class Ragged:
    """Rows of different lengths, padded on the right when a batch is made."""

    def __init__(self, items, pad):
        self.items, self.pad = items, pad
        self.lengths = np.fromiter((len(item) for item in items), dtype=np.int64, count=len(items))

    def __len__(self):
        return len(self.items)

    def take(self, rows):
        return Ragged([self.items[i] for i in rows], self.pad)

    def tensor(self, rows, length):
        padded = np.full((len(rows), length), self.pad, dtype=np.int64)
        for out, i in zip(padded, rows):
            out[: len(self.items[i])] = self.items[i]
        return torch.from_numpy(padded)


class Images:
    """Images turned into pixels one by one, when a batch is made."""

    lengths = None

    def __init__(self, items, transform):
        self.items, self.transform = items, transform

    def __len__(self):
        return len(self.items)

    def take(self, rows):
        return Images([self.items[i] for i in rows], self.transform)

    def tensor(self, rows, length):
        # one image at a time: the pixels of a row must not depend on its neighbours
        return torch.stack([pixels_of(self.items[i], self.transform) for i in rows])


def pixels_of(item, transform):
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

    def __init__(self, columns, max_length=None):
        self._columns = columns
        self.max_length = max_length
        ragged = [c.lengths for c in columns.values() if c.lengths is not None]
        self.lengths = ragged[0] if ragged else None

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def take(self, rows):
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

    def batch(self, rows, length=None, device="cpu"):
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
        if self.lengths is not None:
            mask = np.arange(length) < self.lengths[rows, None]
            batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return {name: tensor.to(device) for name, tensor in batch.items()}


def _bucket(length, max_length):
    """Return the padded length of a row: 8, 16, 24, 32, 48, 64, 96, ... and more than its own.

    Models skip the attention mask when nothing is padded, which changes the last bits: every row
    has padding, except rows at the maximum, which are a group of their own.
    """
    if length == max_length:
        return length
    step = max(8, 1 << length.bit_length() >> 2)
    size = (length // step + 1) * step
    return size if max_length is None else min(size, max_length)


def inference_batches(inputs, max_rows, max_tokens=1024, n_tokens=None):
    """Cut rows into chunks whose shape depends on each row alone.

    All chunks of one padded length have the same number of rows; the last is filled by repeating a
    row. The same row therefore has bit-identical results alone, in any batch and in any order.

    Parameters
    ----------
    inputs : EncodedInputs
        The rows.
    max_rows : int
        Most rows in a chunk.
    max_tokens : int, default=1024
        Most tokens in a chunk, though never less than one row.
    n_tokens : int, default=None
        Tokens of each row where the inputs are not ragged text; None means no token limit.

    Yields
    ------
    rows : ndarray of int
        The rows this chunk answers for.
    padded_rows : ndarray of int
        The rows to put in the batch; the first ``len(rows)`` are `rows`.
    length : int or None
        Length to pad text to.
    """
    if inputs.lengths is None:
        groups = {(n_tokens, False): np.arange(len(inputs))}
    else:
        lengths, inverse = np.unique(inputs.lengths, return_inverse=True)
        keys = [(_bucket(k, inputs.max_length), k == inputs.max_length) for k in lengths.tolist()]
        groups = {}
        for position, key in enumerate(keys):
            groups.setdefault(key, []).append(np.flatnonzero(inverse == position))
        groups = {key: np.concatenate(parts) for key, parts in groups.items()}
    for (length, _), members in groups.items():
        n_rows = max_rows if length is None else max(1, min(max_rows, max_tokens // length))
        for start in range(0, len(members), n_rows):
            rows = members[start : start + n_rows]
            padding = np.full(n_rows - len(rows), rows[0])
            padded_length = None if inputs.lengths is None else length
            yield rows, np.concatenate([rows, padding]), padded_length


def training_batches(inputs, batch_size, rng):
    """Shuffle rows into batches of nearly equal size; texts of similar length come together.

    Parameters
    ----------
    inputs : EncodedInputs
        The rows.
    batch_size : int
        Most rows in a batch.
    rng : numpy.random.Generator
        Source of the order.

    Returns
    -------
    batches : list of ndarray of int
        Each row exactly once.
    """
    order = rng.permutation(len(inputs))
    if inputs.lengths is not None:
        pools = np.array_split(order, -(-len(order) // (16 * batch_size)))
        order = np.concatenate([pool[np.argsort(inputs.lengths[pool])] for pool in pools])
    batches = np.array_split(order, -(-len(order) // batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


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
    y: torch.Tensor
    weight: torch.Tensor

    def __len__(self):
        return len(self.y)

    def take(self, rows):
        """Return the rows `rows` as a new object."""
        return LabelledInputs(self.inputs.take(rows), self.y[rows], self.weight[rows])
