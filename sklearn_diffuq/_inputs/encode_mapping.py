"""Mappings of arrays, such as the output of a tokenizer -> columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils import assert_all_finite

from sklearn_diffuq._inputs.columns import Column, Dense, Mask, Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs


def encode_mapping(X: Mapping, max_length: int | None = None, pad_id: int = 0) -> EncodedInputs:
    """Encode a mapping of equal-length arrays, such as the output of a tokenizer.

    Parameters
    ----------
    X : dict, BatchEncoding or SliceDict
        One array (or list) for each model input. With ``input_ids``, only the places where
        ``attention_mask`` is 1 are kept: padding is redone, on the right.
    max_length : int, default=None
        Longest sequence that the model can read; a longer row is an error.
    pad_id : int, default=0
        Token id in padded places; hidden by the attention mask.

    Returns
    -------
    inputs : EncodedInputs
        Batches with the names of the mapping, in its order.
    """
    values = {str(name): _mapping_values(value, name) for name, value in X.items()}
    if not values:
        raise ValueError("The mapping is empty; it needs at least one named array.")
    counts = {name: len(value) for name, value in values.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"The arrays of the mapping have different numbers of rows: {counts}.")
    if "input_ids" not in values:
        return EncodedInputs({name: Dense(np.asarray(v)) for name, v in values.items()})
    spans = _token_spans(values["input_ids"], values.get("attention_mask"))
    columns: dict[str, Column] = {}
    for name, value in values.items():
        if name == "attention_mask":
            columns[name] = Mask(np.array([b - a for a, b in spans]))
        elif all(np.shape(v) == np.shape(ids) for v, ids in zip(value, values["input_ids"])):
            items = [np.asarray(v[a:b], dtype=np.int32) for v, (a, b) in zip(value, spans)]
            columns[name] = Ragged(items, pad_id if name == "input_ids" else 0)
        else:
            columns[name] = Dense(np.asarray(value))
    longest = max((b - a for a, b in spans), default=0)
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"The mapping has a row of {longest} tokens, but the model reads at most {max_length}. "
            "Tokenise with truncation."
        )
    return EncodedInputs(columns, max_length)


def _mapping_values(value: Any, name: str) -> np.ndarray | list[np.ndarray]:
    """Return one entry of a mapping as an array, or as a list where its rows are ragged."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (list, tuple)) and len({np.shape(v) for v in value}) > 1:
        return [np.asarray(v) for v in value]
    value = np.asarray(value)
    if value.ndim == 0 or value.dtype.kind not in "fuib":
        raise ValueError(
            f"The mapping's entry {name!r} must be an array of numbers with one row per sample, "
            f"got dtype {value.dtype} and shape {value.shape}."
        )
    assert_all_finite(value, input_name=f"X[{name!r}]")
    return value


def _token_spans(
    ids: Sequence[Any] | np.ndarray, mask: Sequence[Any] | np.ndarray | None
) -> list[tuple[int, int]]:
    """Return (start, stop) of the real tokens in each row."""
    if mask is None:
        return [(0, len(row)) for row in ids]
    spans = []
    for row, keep in enumerate(mask):
        places = np.flatnonzero(keep)
        if len(places) == 0 or places[-1] - places[0] + 1 != len(places):
            raise ValueError(
                f"The attention mask of row {row} must be one run of ones, got {list(keep)[:8]}..."
            )
        spans.append((int(places[0]), int(places[-1]) + 1))
    return spans
