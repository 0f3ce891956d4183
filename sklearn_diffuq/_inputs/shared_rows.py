"""Held-out rows that are training rows."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np

from sklearn_diffuq._inputs.columns import Column, Dense, Images, Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.image_files import is_file_name


def shared_rows(training: EncodedInputs, held_out: EncodedInputs) -> tuple[int, float]:
    """Return how many held-out rows are training rows, and their share beyond chance.

    Rows of small tables repeat: among n rows that are drawn alike, a held-out row equals a training
    row about as often as a training row equals another one. The share is 0 where no more than that
    do, and 1 where all do (eq. 7.5).
    """
    known = Counter(_keys(training))
    n_shared = sum(key in known for key in _keys(held_out))
    by_chance = sum(n for n in known.values() if n > 1) / len(training)
    if by_chance == 1:
        return n_shared, 0.0
    return n_shared, max(0.0, (n_shared / len(held_out) - by_chance) / (1 - by_chance))


def _keys(inputs: EncodedInputs) -> list[bytes]:
    columns = inputs.columns
    return [_key([_content(column, row) for column in columns]) for row in range(len(inputs))]


def _key(parts: list[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _content(column: Column, row: int) -> bytes:
    """Return what a row is made of, before any transform; masks of lengths say nothing more."""
    if isinstance(column, Dense):
        return column.array[row].tobytes()
    if isinstance(column, Ragged):
        return column.items[row].tobytes()
    if isinstance(column, Images):
        return _image(column.items[row])
    return b""


def _image(item: Any) -> bytes:
    return str(item).encode() if is_file_name(item) else np.asarray(item).tobytes()
