"""Batches of encoded inputs: of fixed shapes for inference, shuffled for training."""

import numpy as np
import torch

# Rows and, for text, tokens in a chunk of inference.
CPU_CHUNK = 64, 1024
GPU_CHUNK = 512, 2**16


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


def inference_batches(inputs, max_rows, max_tokens=1024):
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
        Most tokens in a chunk of text, though never less than one row.

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
        groups = {(None, False): np.arange(len(inputs))}
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
            yield rows, np.concatenate([rows, padding]), length


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


def chunks(inputs, device="cpu", n_paths=1):
    """Yield ``(rows, batch)``; the shape of a row's batch depends on nothing but the row.

    The batch may hold more rows than `rows`: only the first ``len(rows)`` count. With more than two
    paths per row, a chunk has fewer rows.
    """
    max_rows, max_tokens = CPU_CHUNK if torch.device(device).type == "cpu" else GPU_CHUNK
    max_rows = max(1, 2 * max_rows // max(n_paths, 2))
    for rows, padded_rows, length in inference_batches(inputs, max_rows, max_tokens):
        yield rows, inputs.batch(padded_rows, length, device)


def unpadded_batches(inputs, device="cpu", max_rows=CPU_CHUNK[0], max_tokens=CPU_CHUNK[1]):
    """Yield ``(rows, batch)`` of exactly these rows, where the last bits do not matter."""
    for rows, _, length in inference_batches(inputs, max_rows, max_tokens):
        yield rows, inputs.batch(rows, length, device)


def map_rows(function, inputs, device="cpu", n_paths=1):
    """Apply a function of a batch to all rows, chunk by chunk.

    Parameters
    ----------
    function : callable
        ``function(batch)`` returns a tuple of tensors, one value per row on their first axis.
    inputs : EncodedInputs of length n
    device : str or torch.device, default="cpu"
        Where the batches are.
    n_paths : int, default=1
        Copies of each row that the function works on at once.

    Returns
    -------
    results : tuple of Tensor, each of length n
        On the CPU, in the order of the rows. A row's values depend on the row alone.
    """
    results = None
    for rows, batch in chunks(inputs, device, n_paths):
        parts = [part[: len(rows)].cpu() for part in function(batch)]
        if results is None:
            results = tuple(part.new_empty((len(inputs), *part.shape[1:])) for part in parts)
        for result, part in zip(results, parts, strict=True):
            result[torch.from_numpy(rows)] = part
    return results
