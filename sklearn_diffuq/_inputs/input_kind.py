"""What kind of data `X` is."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sklearn_diffuq._inputs.rows import refuse_sparse
from sklearn_diffuq._inputs.table_columns import column_values, is_missing, is_two_dimensional


def input_kind(X: Any) -> str:
    """Return "mapping", "text", "files", "images" or "table", from `X` alone.

    Names of files are "text" where they are str. Text may come in pairs.
    """
    refuse_sparse(X)
    if isinstance(X, Mapping):
        return "mapping"
    if isinstance(X, torch.Tensor):
        return "images" if X.ndim > 2 else "table"
    if isinstance(X, str):
        return "text"
    if isinstance(X, os.PathLike):
        raise TypeError(
            f"Got one path, {X}, where a collection of files is expected. Use `[path]`."
        )
    if is_two_dimensional(X):
        columns = column_values(X)
        kinds = {_column_kind(column) for column in columns[:3]}
        return kinds.pop() if len(kinds) == 1 and len(columns) <= 2 else "table"
    if hasattr(X, "ndim") and X.ndim > 2:
        return "images"
    if not hasattr(X, "__iter__"):  # such as an object with nothing but __array__
        return input_kind(np.asarray(X))
    kind = _column_kind(X)
    if kind != "table":
        return kind
    first = X[0] if isinstance(X, (Sequence, np.ndarray)) and len(X) else None
    if isinstance(first, (tuple, list)) and len(first) == 2 and _column_kind(first) == "text":
        return "text"
    is_image = hasattr(first, "convert") or getattr(first, "ndim", 0) > 1
    return "images" if is_image else "table"


def _column_kind(values: Any) -> str:
    """Return "text", "files" or "table" for a collection, from its type and its first value."""
    dtype = getattr(values, "dtype", None)
    kind = getattr(dtype, "kind", "O")
    if kind != "O":
        return "text" if kind in "UT" or "str" in str(dtype) else "table"
    first = next((value for value in values if not is_missing(value)), None)
    if isinstance(first, str):
        return "text"
    return "files" if isinstance(first, os.PathLike) else "table"
