"""Datasets of torch and of Hugging Face as rows, read one by one when they are needed."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

LABELS = ("label", "labels")  # columns that are no input
ENCODED = ("input_ids", "pixel_values")  # columns of a data set that has been preprocessed


def is_dataset(X: Any) -> bool:
    """Tell a torch or Hugging Face data set, without importing the latter's package."""
    return isinstance(X, Dataset) or (hasattr(X, "column_names") and hasattr(X, "features"))


def rows_and_labels(X: Any, y: Any = None) -> tuple[Any, Any]:
    """Return `X` with a data set as `DatasetRows`, and `y`; the data set's labels where it is None.

    Parameters
    ----------
    X : anything
        What is no data set is returned as it is.
    y : array-like or None, default=None
    """
    if isinstance(X, DatasetRows) or not is_dataset(X):
        return X, y
    rows = DatasetRows(X)
    return rows, rows.labels() if y is None else y


class DatasetRows(Sequence):
    """The samples of a data set, without their labels.

    A torch data set gives ``(x, y)``, ``(x,)``, ``x`` or a dict for each sample; two str are a pair
    of texts. Of a dict, and of a Hugging Face data set, all but the columns `LABELS` are inputs.

    Parameters
    ----------
    dataset : torch or Hugging Face data set
        With a length.
    rows : ndarray of int, default=None
        The samples, in order; None means all.
    """

    def __init__(self, dataset: Any, rows: np.ndarray | None = None) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"A {type(dataset).__name__} has no length and no order to return to, but samples "
                "are read several times. Give a data set with __len__ and __getitem__, or a list."
            )
        self.dataset = dataset
        self._rows = np.arange(len(dataset)) if rows is None else rows
        self._columns = _columns_of(dataset) if len(self._rows) else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        """Return one sample; the rows of a slice or an array as `DatasetRows`."""
        if isinstance(i, slice) or np.ndim(i):
            return DatasetRows(self.dataset, self._rows[i])
        item = self._item(i)
        if self._columns is None:
            return _sample(item)
        if isinstance(self._columns, str):
            return item[self._columns]
        values = {name: item[name] for name in self._columns}
        is_text = all(isinstance(value, str) for value in values.values())
        return tuple(values.values()) if is_text else values

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([np.asarray(x) for x in self], dtype=dtype)

    def labels(self) -> np.ndarray | None:
        """Return the labels (n,), None if the data set gives none."""
        if hasattr(self.dataset, "column_names"):
            names = [name for name in LABELS if name in self.dataset.column_names]
            return np.asarray(self.dataset[names[0]])[self._rows] if names else None
        found = []
        for item in map(self._item, range(len(self))):
            if isinstance(item, Mapping):
                found += [item[name] for name in LABELS if name in item][:1]
            elif _is_labelled(item):
                found.append(item[1])
        return np.asarray([np.asarray(y)[()] for y in found]) if found else None

    def samples(self) -> Any:
        """Return the samples as they would be given without a data set; images stay rows."""
        first = self[0] if len(self) else ""
        if isinstance(first, Mapping):
            rows = list(self)
            return {name: [row[name] for row in rows] for name in first}
        if isinstance(first, (str, tuple)):
            return list(self)
        is_image = hasattr(first, "convert") or getattr(first, "ndim", 0) > 1
        return self if is_image else np.asarray(self)

    def _item(self, i: int) -> Any:
        return self.dataset[int(self._rows[i])]


def _is_labelled(item: Any) -> bool:
    """Tell (x, y) from a pair of texts and from a row of two numbers."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return False
    first, second = item
    if isinstance(first, str):
        return not isinstance(second, str)
    return not isinstance(first, (Number, np.generic)) and getattr(first, "ndim", 1) > 0


def _sample(item: Any) -> Any:
    """Return x of an item (x, y) or (x,)."""
    if isinstance(item, tuple) and len(item) == 1:  # of a TensorDataset without labels
        return item[0]
    if isinstance(item, tuple) and len(item) > 2 and hasattr(item[0], "shape"):
        raise TypeError(
            f"The items of the data set are tuples of {len(item)}, but (x, y), (x,) or x is read. "
            "Give a data set without the further values."
        )
    return item[0] if _is_labelled(item) else item


def _columns_of(dataset: Any) -> str | list[str] | None:
    """Return the columns that are inputs; one name alone for what is no dict; None without names.

    Raises
    ------
    ValueError
        If it is not clear which columns are.
    """
    first = dataset[0]
    if not isinstance(first, Mapping):
        return None
    names = [name for name in first if name not in LABELS]
    texts = [name for name in names if isinstance(first[name], str)]
    if not hasattr(dataset, "column_names") or any(name in ENCODED for name in names):
        return [name for name in names if name not in texts] or texts
    images = [n for n in names if hasattr(first[n], "convert") or np.ndim(first[n]) > 1]
    if len(images) == 1:
        return images[0]
    if not images and len(texts) in (1, 2):
        return texts[0] if len(texts) == 1 else texts
    raise ValueError(
        f"The data set has the columns {names} beside the labels. One image, or one or two texts, "
        "are read. Select them, for example by `dataset.select_columns(['text', 'label'])`, "
        "or give X=dataset['text'] and y=dataset['label']."
    )
