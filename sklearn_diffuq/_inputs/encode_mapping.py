"""Mappings of arrays, such as the output of a tokenizer -> columns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sklearn_diffuq._inputs.columns import Column, Dense, Mask, Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.not_finite import check_float32
from sklearn_diffuq._inputs.token_rows import check_ids, token_spans


def encode_mapping(
    X: Mapping,
    max_length: int | None = None,
    pad_id: int = 0,
    limits: Mapping[str, int] | None = None,
) -> EncodedInputs:
    """Encode a mapping of equal-length arrays, such as the output of a tokenizer.

    Parameters
    ----------
    X : dict, BatchEncoding or SliceDict
        One array (or list) for each model input. With ``input_ids``, only the places where
        ``attention_mask`` is 1 are kept: padding is redone. So it is for entries with
        one value, or one array, for each token.
    max_length : int, default=None
        Longest sequence that the model can read; a longer row is an error.
    pad_id : int, default=0
        Token id in padded places; hidden by the attention mask.
    limits : dict of str to int, default=None
        Number of ids that the model knows, for entries that hold ids.

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
    limits = {} if limits is None else limits
    ids = check_ids(values["input_ids"], "input_ids", limits.get("input_ids"))
    spans = token_spans(ids, values.get("attention_mask"))
    columns: dict[str, Column] = {}
    for name, value in values.items():
        if name == "attention_mask":
            columns[name] = Mask(np.array([b - a for a, b in spans]))
        elif all(np.shape(v)[:1] == row.shape for v, row in zip(value, ids)):
            rows = check_ids(value, name, limits[name]) if name in limits else value
            items = [np.asarray(v[a:b]) for v, (a, b) in zip(rows, spans)]
            if len(shapes := {item.shape[1:] for item in items}) > 1:
                raise ValueError(
                    f"The entry {name!r} of the mapping has values of different shapes per token: "
                    f"{sorted(shapes)[:3]}."
                )
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
        return [_numbers(v, f"{name}[{row}]") for row, v in enumerate(value)]
    return _numbers(value, name)


def _numbers(value: Any, name: str) -> np.ndarray:
    """Return an entry, or a row of one, as an array of finite numbers."""
    value = np.asarray(value)
    if value.ndim == 0 or value.dtype.kind not in "fuib":
        raise ValueError(
            f"The mapping's entry {name!r} must be an array of numbers with one row per sample, "
            f"got dtype {value.dtype} and shape {value.shape}."
        )
    check_float32(value, f"X[{name!r}]")
    return value
