"""The columns of a table, whatever holds it, as numbers or as categories."""

from collections.abc import Hashable
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

_DAYS = "dates to a number of days"


@dataclass(frozen=True)
class TableColumn:
    """One column as it was given.

    Attributes
    ----------
    name : hashable
        Its name, or its position in an array.
    values : ndarray of shape (n,)
    is_declared : bool
        Whether its type says that it holds categories.
    """

    name: Hashable
    values: np.ndarray
    is_declared: bool = False

    def is_category(self) -> bool:
        """Tell whether the column holds categories, not numbers; refuse what holds neither."""
        if self.values.dtype.kind in "iuf" and not self.is_declared:
            return False
        if self.values.dtype.kind in "mMc":
            raise self._error(f"has dtype {self.values.dtype}", _DAYS)
        known = [value for value in self.values if not is_missing(value)]
        kinds = sorted({_kind(one) for one in {type(value): value for value in known}.values()})
        if len(kinds) > 1:
            raise self._error(
                f"holds values of the types {' and '.join(kinds)}", "all to numbers, or all to str"
            )
        if self.is_declared or not kinds:
            return self.is_declared
        if kinds == ["str"]:
            self._refuse_numbers_as_text(known)
        elif kinds[0] not in ("bool", "number"):
            raise self._error(f"holds values of type {kinds[0]}", _DAYS)
        return kinds[0] != "number"

    def take(self, rows: np.ndarray) -> "TableColumn":
        """Return the same column of some rows."""
        return TableColumn(self.name, self.values[rows], self.is_declared)

    def missing(self) -> np.ndarray:
        """Return where a value is missing, (n,)."""
        if self.values.dtype.kind in "biuf":
            return np.isnan(self.values)
        return np.array([is_missing(value) for value in self.values], dtype=bool)

    def numbers(self) -> np.ndarray:
        """Return the column as float64, NaN where a value is missing."""
        if self.values.dtype.kind in "mMc":
            raise self._error(f"has dtype {self.values.dtype}", _DAYS)
        if self.values.dtype.kind in "biuf":
            return self.values.astype(np.float64)
        try:
            numbers = [np.nan if is_missing(v) else float(v) for v in self.values]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Column {self.name!r} held numbers in fit, but {error}. Give numbers again."
            ) from None
        return np.array(numbers, dtype=np.float64)

    def categories(self) -> list[Any]:
        """Return the values, None where one is missing."""
        return [None if is_missing(value) else value for value in self.values.tolist()]

    def _refuse_numbers_as_text(self, known: list[str]) -> None:
        """Refuse text that is numbers; whole numbers that repeat may be codes."""
        if not all(map(_is_number, known)):
            return
        distinct = set(known)
        if all(text.strip().isdecimal() for text in distinct) and 2 * len(distinct) <= len(known):
            return
        raise ValueError(
            f"Column {self.name!r} holds numbers written as text, such as {known[0]!r}. If they "
            "are numbers, convert the column by astype(float); if they are the names of "
            'categories, by astype("category").'
        )

    def _error(self, what: str, how: str) -> ValueError:
        return ValueError(
            f"Column {self.name!r} {what}; a column must hold numbers or categories. Convert it, "
            f"for example {how}."
        )


def is_frame(X: Any) -> bool:
    """Tell whether `X` is a data frame, of pandas, polars or alike."""
    return is_pandas(X) or (hasattr(X, "get_column") and hasattr(X, "columns"))


def is_pandas(X: Any) -> bool:
    """Tell whether `X` is a data frame of pandas, or one that is used as such."""
    return hasattr(X, "iloc") and getattr(X, "ndim", 0) == 2


def is_two_dimensional(X: Any) -> bool:
    """Tell whether `X` has columns: a data frame or a two-dimensional array."""
    return is_frame(X) or getattr(X, "ndim", 0) == 2


def column_values(X: Any) -> list[Any]:
    """Return each column of a data frame or of a two-dimensional array, as it is."""
    if is_pandas(X):
        return [X.iloc[:, j] for j in range(X.shape[1])]
    if is_frame(X):
        return [X.get_column(name) for name in X.columns]
    return [X[:, j] for j in range(X.shape[1])]


def is_object_array(X: Any) -> bool:
    """Tell whether `X` is a two-dimensional array of objects or text."""
    return isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OU"


def is_mixed(X: np.ndarray) -> bool:
    """Tell whether some values of an array are missing, or text that is not a number."""
    return any(
        is_missing(value) or (isinstance(value, str) and not _is_number(value)) for value in X.flat
    )


def columns_of(X: Any) -> list[TableColumn]:
    """Return the columns of a data frame or of an array of objects."""
    make = _of_pandas if is_pandas(X) else _of_series if is_frame(X) else TableColumn
    names = X.columns if is_frame(X) else range(X.shape[1])
    return [make(name, values) for name, values in zip(names, column_values(X), strict=True)]


def _of_pandas(name: Hashable, series: Any) -> TableColumn:
    if series.dtype.kind in "iuf" and not isinstance(series.dtype, np.dtype):  # may have pandas.NA
        return TableColumn(name, series.to_numpy(dtype=np.float64, na_value=np.nan))
    is_declared = type(series.dtype).__name__ == "CategoricalDtype"
    values = series.astype(object).to_numpy() if is_declared else series.to_numpy()
    return TableColumn(name, values, is_declared)


def _of_series(name: Hashable, series: Any) -> TableColumn:
    return TableColumn(
        name, series.to_numpy(), type(series.dtype).__name__ in ("Categorical", "Enum")
    )


def is_missing(value: Any) -> bool:
    """Tell None, NaN, NaT and pandas.NA, without importing pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating, Decimal)) and value != value


def _kind(value: Any) -> str:
    """Return the name of the type of a value, that of a NumPy scalar as Python's."""
    if isinstance(value, str):
        return "str"
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    return "number" if isinstance(value, (Real, Decimal)) else type(value).__name__


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
