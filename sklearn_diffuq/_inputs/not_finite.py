"""Refusing rows that cannot be used, by their numbers in what the user gave."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils import assert_all_finite
from torch import Tensor

SHOWN = 10  # row numbers that a message names
MAX_FLOAT32 = float(np.finfo(np.float32).max)


class RowsError(ValueError):
    """Some rows cannot be used.

    Parameters
    ----------
    rows : ndarray of int
        Their numbers, from 0.
    what : str
        What is wrong, and what to do.
    source : str, default="X"
        What the rows are counted in.
    """

    problem: ClassVar[str]

    def __init__(self, rows: np.ndarray, what: str, source: str = "X") -> None:
        self.rows, self.what, self.source = np.asarray(rows), what, source
        super().__init__(rows, what, source)

    def __str__(self) -> str:
        numbers = np.sort(self.rows).tolist()
        dots = ", .." if len(numbers) > SHOWN else ""
        listed = ", ".join(map(str, numbers[:SHOWN])) + dots
        return (
            f"{self.problem} in {len(numbers)} row(s) of {self.source}, counted from 0: {listed}. "
            f"{self.what}"
        )


class NotFiniteError(RowsError):
    """Some rows have NaN or infinite values."""

    problem = "NaN or infinite values"


class UnreadableError(RowsError):
    """Some rows cannot be read as images."""

    problem = "Unreadable images"


@contextmanager
def counted_in(numbers: np.ndarray, source: str) -> Iterator[None]:
    """Name the rows of an error by their numbers in `source`, of which they are a part."""
    try:
        yield
    except RowsError as error:
        raise type(error)(numbers[error.rows], error.what, source) from error.__cause__


@contextmanager
def counted_from(start: int) -> Iterator[None]:
    """Name the rows of an error by their numbers in what they are a part of, from `start`."""
    try:
        yield
    except RowsError as error:
        if not start:
            raise
        raise type(error)(error.rows + start, error.what, error.source) from error.__cause__


@contextmanager
def rows_blamed(check: Callable[[], object], n_rows: int) -> Iterator[None]:
    """Where training diverges because of some of the rows, name them instead.

    `check` raises NotFiniteError for these rows; where all rows fail, it is not theirs.
    """
    try:
        yield
    except FloatingPointError:
        try:
            check()
        except NotFiniteError as error:
            if len(error.rows) < n_rows:
                raise error from None
        raise


def rows_not_finite(values: Tensor) -> np.ndarray:
    """Return the positions on the first axis of tensors where anything is NaN or infinite."""
    array = values.detach().cpu()
    array = array.float() if array.dtype in (torch.bfloat16, torch.float16) else array
    return np.flatnonzero(~np.isfinite(array.numpy()).reshape(len(array), -1).all(1))


def refuse_not_finite(values: Tensor) -> None:
    """Raise NotFiniteError if a row of the outputs of a batch (n, ...) is not finite."""
    rows = rows_not_finite(values)
    if len(rows):
        raise NotFiniteError(rows, "The model's outputs are NaN or infinite there.")


def check_float32(array: np.ndarray, name: str) -> None:
    """Refuse an array (n, ...) whose values are NaN, infinite, or become so in float32."""
    try:
        assert_all_finite(array, input_name=name)
    except ValueError as error:
        if array.dtype.kind != "f" or not array.ndim:
            raise
        bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
        what = f"{error.args[0].splitlines()[0]} Repair these values or leave out these rows."
        raise NotFiniteError(np.flatnonzero(bad), what, name) from None
    if array.dtype.kind != "f" or array.dtype.itemsize <= 4 or not array.size:
        return
    largest = max(float(array.max()), -float(array.min()))
    if largest > MAX_FLOAT32:
        bad = (np.abs(array) > MAX_FLOAT32).reshape(len(array), -1).any(1)
        raise NotFiniteError(
            np.flatnonzero(bad),
            f"The model computes in float32, in which values up to {largest:.3g} are infinite. "
            "Scale the values as the model was trained.",
            name,
        )
