"""What kind of data `X` is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sklearn_diffuq._inputs.rows import refuse_sparse


def input_kind(X: Any) -> str:
    """Return "mapping", "text", "images" or "table", from the type of `X` alone."""
    refuse_sparse(X)
    if isinstance(X, Mapping):
        return "mapping"
    if isinstance(X, torch.Tensor):
        return "images" if X.ndim > 2 else "table"
    if isinstance(X, str):
        return "text"
    if hasattr(X, "dtypes") and getattr(X, "ndim", 0) == 2:  # a data frame
        return "text" if X.shape[1] == 1 and _is_str(X.iloc[:, 0]) else "table"
    if hasattr(X, "ndim") and X.ndim > 1:
        return "images" if X.ndim > 2 else "table"
    if not hasattr(X, "__iter__"):  # such as an object with nothing but __array__
        return input_kind(np.asarray(X))
    if _is_str(X):
        return "text"
    first = X[0] if isinstance(X, (list, tuple, np.ndarray)) and len(X) else None
    is_image = hasattr(first, "convert") or getattr(first, "ndim", 0) > 1
    return "images" if is_image else "table"


def _is_str(values: Any) -> bool:
    """Tell whether a one-dimensional collection starts with a str."""
    kind = getattr(getattr(values, "dtype", None), "kind", "O")
    if kind != "O":
        return kind in "UT" or "str" in str(values.dtype)
    return next((isinstance(v, str) for v in values if v is not None), False)
