"""Tables -> numbers of unit scale and category codes, learned on the training rows."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import validate_data

from sklearn_diffuq._inputs.category_codes import CategoryCodes
from sklearn_diffuq._inputs.columns import Column, Dense
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.number_map import NumberMap
from sklearn_diffuq._inputs.rows import SHOWN
from sklearn_diffuq._inputs.step_map import StepMap
from sklearn_diffuq._inputs.table_columns import (
    TableColumn,
    columns_of,
    is_frame,
    is_mixed,
    is_object_array,
)
from sklearn_diffuq._state import State
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq.exceptions import ColumnWarning

MIN_WARNED_ROWS = 10  # fewer may all have a rare category, or lack a value


def encode_table(
    x_num: ArrayLike, x_cat: ArrayLike | None = None, beyond: ArrayLike | None = None
) -> EncodedInputs:
    """Encode a numeric table, and the codes of categorical columns beside it.

    Parameters
    ----------
    x_num : ndarray of shape (n_rows, n_numeric)
        Numbers; they become float32 in a batch.
    x_cat : ndarray of shape (n_rows, n_categorical), default=None
        Integer codes of categories.
    beyond : ndarray of shape (n_rows,), default=None
        How far outside of the training range each row is.

    Returns
    -------
    inputs : EncodedInputs
        Batches with ``x_num`` and, where given, ``x_cat`` and ``beyond_range``.
    """
    columns: dict[str, Column] = {"x_num": Dense(np.asarray(x_num, dtype=np.float32))}
    if x_cat is not None:
        columns["x_cat"] = Dense(np.asarray(x_cat, dtype=np.int32))
    if beyond is not None:
        columns["beyond_range"] = Dense(np.asarray(beyond, dtype=np.float32))
    return EncodedInputs(columns)


class TableEncoder:
    """Encode arrays and data frames for an FT-Transformer.

    Numbers are mapped to normal quantiles, which keeps heavy tails away from the network; how far
    outside of the training range a row is, is an input of its own. Columns of text, booleans or a
    categorical dtype are categories. In data frames missing values are allowed: a missing number
    stays NaN, a missing category is a category of its own. In arrays of numbers NaN is an error. A
    column that is constant in training has no effect later.

    Attributes
    ----------
    cardinalities : list of int
        Number of codes of each categorical column; code 0 means not seen in training.
    n_numeric : int
        Number of numeric columns.
    """

    _is_category: np.ndarray
    _numbers: NumberMap | StepMap
    _codes: CategoryCodes

    @property
    def cardinalities(self) -> list[int]:
        return self._codes.cardinalities

    @property
    def n_numeric(self) -> int:
        return len(self._numbers.constant)

    def fit_transform(self, owner: BaseEstimator, X: Any, rows: np.ndarray) -> EncodedInputs:
        """Learn scales and categories from some rows of `X` and return these rows encoded.

        All rows are checked; the number and names of features are set on `owner`.

        Warns
        -----
        ColumnWarning
            If columns are constant in these rows.
        """
        columns = self._read(owner, X, reset=True)
        self._is_category = np.array([column.is_category() for column in columns], dtype=bool)
        numeric, categorical = self._split(columns)
        numbers = _numbers(numeric, len(columns[0].values))[rows]
        categorical = [column.take(rows) for column in categorical]
        self._numbers, self._codes = NumberMap.fit(numbers), CategoryCodes.fit(categorical)
        partly_missing = np.isnan(numbers).any(0) & ~np.isnan(numbers).all(0)
        constant = [
            *_chosen(numeric, self._numbers.constant & ~partly_missing),
            *_chosen(categorical, self._codes.constant),
        ]
        if constant:
            warn_user(
                f"No two values differ in the training rows of {_listed(constant)}: constant "
                "columns have no effect on predictions, whatever their values are later. Leave "
                "them out, or give rows in which they vary.",
                ColumnWarning,
            )
        return self._encode(numbers, self._codes.transform(categorical, len(rows)))

    def transform(self, owner: BaseEstimator, X: Any) -> EncodedInputs:
        """Return the rows as `EncodedInputs`.

        Warns
        -----
        ColumnWarning
            If at least `MIN_WARNED_ROWS` rows have no value in a column, or none that is known.
        """
        columns = self._read(owner, X, reset=False)
        numeric, categorical = self._split(columns)
        numbers = _numbers(numeric, len(columns[0].values), self._numbers.constant)
        codes = self._codes.transform(categorical, len(numbers))
        if len(numbers) >= MIN_WARNED_ROWS:
            self._warn_of_columns(numeric, np.isnan(numbers).all(0), categorical, codes)
        return self._encode(numbers, codes)

    def _warn_of_columns(
        self,
        numeric: list[TableColumn],
        is_empty: np.ndarray,
        categorical: list[TableColumn],
        codes: np.ndarray,
    ) -> None:
        absent = np.array([column.missing().all() for column in categorical], dtype=bool)
        unseen = (codes == 0).all(0)
        empty = [
            *_chosen(numeric, is_empty & ~self._numbers.constant),
            *_chosen(categorical, unseen & absent),
        ]
        unknown = _chosen(categorical, unseen & ~absent)
        if empty:
            warn_user(
                f"There is no value in {_listed(empty)}; what is missing tells nothing, and "
                "probabilities rest on the other columns. Fill it, or leave it out in fit as well.",
                ColumnWarning,
            )
        if unknown:
            known = self._codes.known[categorical.index(unknown[0])][0]
            given = next(value for value in unknown[0].categories() if value is not None)
            warn_user(
                f"No value of {_listed(unknown)} was seen in fit; all count as unknown. Column "
                f"{unknown[0].name!r} has values such as {given!r} where fit had {known!r}. Give "
                "the types and the spelling of fit.",
                ColumnWarning,
            )

    def to_state(self) -> State:
        """Return the fitted encoder as a `State`.

        Raises
        ------
        ValueError
            If there are categories that JSON does not know.
        """
        numbers, codes = self._numbers.to_state(), self._codes.to_state()
        config = {"is_category": self._is_category.tolist(), **numbers.config, **codes.config}
        return State(config, numbers.tensors)

    @classmethod
    def from_state(cls, state: State) -> "TableEncoder":
        """Restore a fitted encoder, also one that an earlier version has written."""
        encoder = cls()
        encoder._is_category = np.array(state.config["is_category"], dtype=bool)
        kind = StepMap if "references" in state.tensors else NumberMap
        encoder._numbers = kind.from_state(state)
        encoder._codes = CategoryCodes.from_state(state)
        return encoder

    def _encode(self, numbers: np.ndarray, codes: np.ndarray) -> EncodedInputs:
        return encode_table(
            self._numbers.transform(numbers),
            codes if codes.shape[1] else None,
            self._numbers.beyond(numbers),
        )

    def _split(self, columns: list[TableColumn]) -> tuple[list[TableColumn], list[TableColumn]]:
        return _chosen(columns, ~self._is_category), _chosen(columns, self._is_category)

    def _read(self, owner: BaseEstimator, X: Any, reset: bool) -> list[TableColumn]:
        """Return the columns of `X`, and check their number and names."""
        has_codes = not reset and bool(self.cardinalities)
        if is_frame(X) or (is_object_array(X) and (has_codes or is_mixed(X))):
            validate_data(owner, X, reset=reset, skip_check_array=True)
            if 0 in X.shape:
                raise ValueError(
                    f"Found a table of {X.shape[0]} sample(s) and {X.shape[1]} feature(s), but at "
                    "least one of each is required."
                )
            return columns_of(X)
        if not reset and self.cardinalities:
            raise ValueError(
                f"{type(owner).__name__} was fitted on categorical columns, but got a "
                f"{type(X).__name__} of numbers. Give a data frame with the same columns."
            )
        return columns_of(validate_data(owner, X, reset=reset, dtype=np.float64))


def _numbers(
    columns: list[TableColumn], n_rows: int, unread: np.ndarray | None = None
) -> np.ndarray:
    """Return numeric columns as one array (n_rows, n_columns), 0 or NaN in columns not read."""
    numbers = np.empty((n_rows, len(columns)))
    for j, column in enumerate(columns):
        is_read = unread is None or not unread[j]
        numbers[:, j] = column.numbers() if is_read else np.where(column.missing(), np.nan, 0.0)
    assert_all_finite(numbers, allow_nan=True, input_name="X")
    return numbers


def _chosen(columns: list[TableColumn], mask: np.ndarray) -> list[TableColumn]:
    return [column for column, flag in zip(columns, mask, strict=True) if flag]


def _listed(columns: list[TableColumn]) -> str:
    names = [repr(column.name) for column in columns]
    dots = ", .." if len(names) > SHOWN else ""
    return f"column {', '.join(names[:SHOWN])}{dots}"
