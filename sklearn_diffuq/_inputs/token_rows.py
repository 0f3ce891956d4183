"""What rows of token ids and attention masks have to be, checked before a model sees them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Rows: TypeAlias = Sequence[Any] | np.ndarray  # one array or list for each sample


def check_ids(rows: Rows, name: str, limit: int | None, way_out: str = "") -> list[np.ndarray]:
    """Return rows of ids as arrays of int32, or say which row has something else.

    Parameters
    ----------
    rows : sequence of length n
        Numbers of shape (t,) for each sample.
    name : str
        Name of the model input, for the message.
    limit : int or None
        Number of ids that the model knows, None if it does not say.
    way_out : str, default=""
        What to do about an id out of range.

    Returns
    -------
    ids : list of ndarray of shape (t,) and dtype int32
    """
    checked = []
    largest = np.iinfo(np.int32).max if limit is None else limit - 1
    for row, values in enumerate(rows):
        ids = np.asarray(values)
        if ids.ndim != 1 or len(ids) == 0:
            raise ValueError(
                f"Row {row} of {name!r} has the shape {ids.shape}. It has to be (t,), one id for "
                "each of one or more tokens."
            )
        if ids.dtype.kind not in "uif" or (ids.dtype.kind == "f" and (ids != np.rint(ids)).any()):
            raise ValueError(
                f"Row {row} of {name!r} holds {ids[:5].tolist()} of dtype {ids.dtype}. Ids have to "
                "be integers; values per token are an entry with another name."
            )
        wrong = ids[(ids < 0) | (ids > largest)]
        if len(wrong):
            raise ValueError(
                f"Row {row} of {name!r} has the id {wrong[0]}, but the model knows ids from 0 to "
                f"{largest}.{way_out}"
            )
        checked.append(ids.astype(np.int32))
    return checked


def token_spans(ids: Rows, mask: Rows | None) -> list[tuple[int, int]]:
    """Return (start, stop) of the real tokens in each row, or say which mask is none."""
    if mask is None:
        return [(0, len(row)) for row in ids]
    spans = []
    for row, keep in enumerate(mask):
        if np.shape(keep) != np.shape(ids[row]):
            raise ValueError(
                f"The attention mask of row {row} has the shape {np.shape(keep)}, its token ids "
                f"{np.shape(ids[row])}. Both have to be the same."
            )
        values = np.asarray(keep)
        if not np.isin(values, (0, 1)).all():
            other = values[~np.isin(values, (0, 1))][0]
            raise ValueError(
                f"The attention mask of row {row} has the value {other}. It has to be 1 for a "
                "token and 0 for padding."
            )
        places = np.flatnonzero(values)
        if len(places) == 0 or places[-1] - places[0] + 1 != len(places):
            raise ValueError(
                f"The attention mask of row {row} must be one run of ones, got "
                f"{values[:8].tolist()}..."
            )
        spans.append((int(places[0]), int(places[-1]) + 1))
    return spans
