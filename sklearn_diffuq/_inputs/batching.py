"""Cutting encoded inputs into batches."""

import numpy as np


def _bucket(length, max_length):
    """Return the padded length of a row: 8, 16, 24, 32, 48, 64, 96, ... and more than its own.

    Models skip the attention mask when nothing is padded, which changes the last bits: every row
    has padding, except rows at the maximum, which are a group of their own.
    """
    if length == max_length:
        return length
    step = max(8, 1 << length.bit_length() >> 2)
    size = (length // step + 1) * step
    return size if max_length is None else min(size, max_length)


def inference_batches(inputs, max_rows, max_tokens=1024, n_tokens=None):
    """Cut rows into chunks whose shape depends on each row alone.

    All chunks of one padded length have the same number of rows; the last is filled by repeating a
    row. The same row therefore has bit-identical results alone, in any batch and in any order.

    Parameters
    ----------
    inputs : EncodedInputs
        The rows.
    max_rows : int
        Most rows in a chunk.
    max_tokens : int, default=1024
        Most tokens in a chunk, though never less than one row.
    n_tokens : int, default=None
        Tokens of each row where the inputs are not ragged text; None means no token limit.

    Yields
    ------
    rows : ndarray of int
        The rows this chunk answers for.
    padded_rows : ndarray of int
        The rows to put in the batch; the first ``len(rows)`` are `rows`.
    length : int or None
        Length to pad text to.
    """
    if inputs.lengths is None:
        groups = {(n_tokens, False): np.arange(len(inputs))}
    else:
        lengths, inverse = np.unique(inputs.lengths, return_inverse=True)
        keys = [(_bucket(k, inputs.max_length), k == inputs.max_length) for k in lengths.tolist()]
        groups = {}
        for position, key in enumerate(keys):
            groups.setdefault(key, []).append(np.flatnonzero(inverse == position))
        groups = {key: np.concatenate(parts) for key, parts in groups.items()}
    for (length, _), members in groups.items():
        n_rows = max_rows if length is None else max(1, min(max_rows, max_tokens // length))
        for start in range(0, len(members), n_rows):
            rows = members[start : start + n_rows]
            padding = np.full(n_rows - len(rows), rows[0])
            padded_length = None if inputs.lengths is None else length
            yield rows, np.concatenate([rows, padding]), padded_length


def training_batches(inputs, batch_size, rng):
    """Shuffle rows into batches of nearly equal size; texts of similar length come together.

    Parameters
    ----------
    inputs : EncodedInputs
        The rows.
    batch_size : int
        Most rows in a batch.
    rng : numpy.random.Generator
        Source of the order.

    Returns
    -------
    batches : list of ndarray of int
        Each row exactly once.
    """
    order = rng.permutation(len(inputs))
    if inputs.lengths is not None:
        pools = np.array_split(order, -(-len(order) // (16 * batch_size)))
        order = np.concatenate([pool[np.argsort(inputs.lengths[pool])] for pool in pools])
    batches = np.array_split(order, -(-len(order) // batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


_CHUNK_ROWS = 128  # rows times paths that are pushed through the path together


def chunks(inputs, device="cpu", n_paths=1):
    """Yield ``(rows, batch)``; the shape of a row's batch depends on nothing but the row.

    The batch may hold more rows than `rows`: only the first ``len(rows)`` count.
    """
    max_rows = max(1, _CHUNK_ROWS // max(n_paths, 2))
    for rows, padded_rows, length in inference_batches(inputs, max_rows):
        yield rows, inputs.batch(padded_rows, length, device)


def real_rows(inputs, device="cpu"):
    """Yield the batches of `chunks` without the repeated rows that fill them up."""
    for rows, batch in chunks(inputs, device):
        yield {name: value[: len(rows)] for name, value in batch.items()}
