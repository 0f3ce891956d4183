"""Categories -> codes, learned on the training rows."""

from typing import Any

import numpy as np

from sklearn_diffuq._inputs.table_columns import TableColumn
from sklearn_diffuq._state import State, plain


class CategoryCodes:
    """Number the categories of each column from 1; code 0 means not seen in training.

    Parameters
    ----------
    known : list of list
        Categories of each column; None, the missing one, comes last.
    constant : ndarray of shape (n_columns,) and dtype bool
        Columns in which every value gets code 1.
    """

    def __init__(self, known: list[list[Any]], constant: np.ndarray) -> None:
        self.known, self.constant = known, constant
        self._codes = [{value: code for code, value in enumerate(k, start=1)} for k in known]

    @classmethod
    def fit(cls, columns: list[TableColumn]) -> "CategoryCodes":
        """Learn the sorted categories of each column; those with one category are constant."""
        known = []
        for column in columns:
            found = set(column.categories())
            known.append(sorted(found - {None}) + [None] * (None in found))
        return cls(known, np.array([len(values) == 1 for values in known], dtype=bool))

    @property
    def cardinalities(self) -> list[int]:
        """Number of codes of each column."""
        return [len(values) + 1 for values in self.known]

    def transform(self, columns: list[TableColumn], n_rows: int) -> np.ndarray:
        """Return the codes (n, n_columns) of all columns."""
        codes = np.ones((n_rows, len(columns)), dtype=np.int32)
        for j in np.flatnonzero(~self.constant):
            table = self._codes[j]
            codes[:, j] = [table.get(value, 0) for value in columns[j].categories()]
        return codes

    def to_state(self) -> State:
        """Return the categories; nothing if there are no columns.

        Raises
        ------
        ValueError
            If there are categories that JSON does not know.
        """
        if not self.known:
            return State({})
        known = [[_as_json(value) for value in values] for values in self.known]
        return State({"categories": known, "constant_categories": self.constant.tolist()})

    @classmethod
    def from_state(cls, state: State) -> "CategoryCodes":
        """Restore the codes; in files of earlier versions no column is constant."""
        known = state.config.get("categories", [])
        constant = state.config.get("constant_categories", [False] * len(known))
        return cls(known, np.array(constant, dtype=bool))


def _as_json(value: object) -> str | bool | int | float | None:
    """Return a category as JSON knows it."""
    known = plain(value)
    if isinstance(known, list) or (known is None and value is not None):
        raise ValueError(
            f"A category of type {type(value).__name__} ({value!r}) cannot be saved; categories "
            "must be str, int, float or bool. Convert the column, for example by astype(str), "
            "before fit."
        )
    return known
