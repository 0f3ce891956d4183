"""Batches of encoded inputs: of fixed shapes for inference, shuffled for training."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.not_finite import NotFiniteError, rows_not_finite


class ChunkSize(NamedTuple):
    """How much is in a chunk of inference.

    Attributes
    ----------
    rows : int
        Most rows.
    tokens : int
        Most tokens of text.
    few_numbers : int
        Rows of few numbers each, such as those of tables, are as many as hold this many, if that is
        more; up to eight times `rows`.
    """

    rows: int
    tokens: int
    few_numbers: int

    def of(self, inputs: EncodedInputs) -> "ChunkSize":
        """Return the size for some inputs."""
        if inputs.row_size is None:
            return self
        rows = self.few_numbers // max(inputs.row_size, 1)
        return self._replace(rows=min(max(rows, self.rows), 8 * self.rows))


CPU_CHUNK = ChunkSize(64, 1024, 2**14)
GPU_CHUNK = ChunkSize(512, 2**15, 2**17)

# Rows without and with a known number of tokens, and tokens, of which a GPU keeps all that the
# blocks compute: about 100 kB per token and wide block.
GPU_ROWS, GPU_TEXTS, GPU_TOKENS = 64, 512, 2**13


def _bucket(length: int, max_length: int | None) -> int:
    """Return the padded length of a row: 8, 16, 24, 32, 48, 64, 96, ... and more than its own.

    Models skip the attention mask when nothing is padded, which changes the last bits: every row
    has padding, except rows at the maximum, which are a group of their own.
    """
    if length == max_length:
        return length
    step = max(8, 1 << length.bit_length() >> 2)
    size = (length // step + 1) * step
    return size if max_length is None else min(size, max_length)


def inference_batches(
    inputs: EncodedInputs, max_rows: int, max_tokens: int = 1024
) -> Iterator[tuple[np.ndarray, np.ndarray, int | None]]:
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
    for length, members in _groups(inputs):
        n_rows = max_rows if length is None else max(1, min(max_rows, max_tokens // length))
        for start in range(0, len(members), n_rows):
            rows = members[start : start + n_rows]
            padding = np.full(n_rows - len(rows), rows[0])
            yield rows, np.concatenate([rows, padding]), length


def _groups(inputs: EncodedInputs) -> list[tuple[int | None, np.ndarray]]:
    """Return the rows of each padded length; those of the maximal length are a group."""
    if inputs.lengths is None:
        return [(None, np.arange(len(inputs)))]
    lengths, inverse = np.unique(inputs.lengths, return_inverse=True)
    groups: dict[tuple[int, bool], list[np.ndarray]] = {}
    for position, length in enumerate(lengths.tolist()):
        key = _bucket(length, inputs.max_length), length == inputs.max_length
        groups.setdefault(key, []).append(np.flatnonzero(inverse == position))
    return [(length, np.concatenate(rows)) for (length, _), rows in groups.items()]


def training_batches(
    inputs: EncodedInputs, batch_size: int, rng: np.random.Generator
) -> list[np.ndarray]:
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


def kept_chunk(inputs: EncodedInputs, device: torch.device) -> tuple[int, int]:
    """Return the rows and tokens of a batch all of whose states are kept."""
    if device.type == "cpu":
        return CPU_CHUNK[:2]
    return GPU_ROWS if inputs.lengths is None else GPU_TEXTS, GPU_TOKENS


def unpadded_batches(
    inputs: EncodedInputs,
    device: str | torch.device = "cpu",
    max_rows: int = CPU_CHUNK.rows,
    max_tokens: int = CPU_CHUNK.tokens,
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Yield ``(rows, batch)`` of exactly these rows, where the last bits do not matter.

    Text is padded to the longest of the rows.
    """
    for rows, _, _ in inference_batches(inputs, max_rows, max_tokens):
        yield rows, inputs.batch(rows, device=device)


def unpadded_order(inputs: EncodedInputs) -> np.ndarray:
    """Return the order in which `unpadded_batches` yields the rows."""
    return np.concatenate(
        [rows for rows, _, _ in inference_batches(inputs, CPU_CHUNK.rows, CPU_CHUNK.tokens)]
    )


def map_rows(
    function: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    inputs: EncodedInputs,
    device: str | torch.device = "cpu",
    n_paths: int = 1,
) -> tuple[Tensor, ...]:
    """Apply a function of a batch to all rows, chunk by chunk; see `map_chunks`.

    Parameters
    ----------
    function : callable
        ``function(batch)`` returns a tuple of tensors, one value per row on their first axis.
    inputs : EncodedInputs of length n
    device : str or torch.device, default="cpu"
        Where the batches are.
    n_paths : int, default=1
        Copies of each row that the function works on at once.
    """
    return map_chunks(
        lambda n_rows, rows, length: function(inputs.batch(rows, length, device)),
        inputs,
        device,
        n_paths,
    )


def map_chunks(
    run: Callable[[int, np.ndarray, int | None], tuple[Tensor, ...]],
    inputs: EncodedInputs,
    device: str | torch.device = "cpu",
    n_paths: int = 1,
) -> tuple[Tensor, ...]:
    """Compute values of all rows, chunk by chunk.

    Parameters
    ----------
    run : callable
        ``run(n_rows, padded_rows, length)`` returns the values of the first `n_rows` of the rows of
        a chunk, or of more; see `inference_batches`.
    inputs : EncodedInputs of length n
    device : str or torch.device, default="cpu"
        Which chunks to make; with more than two paths per row, of fewer rows.
    n_paths : int, default=1

    Returns
    -------
    results : tuple of Tensor, each of length n
        On the CPU, in the order of the rows. A row's values depend on the row alone.

    Raises
    ------
    NotFiniteError
        If a value is NaN or infinite; it names the rows.
    """
    size = (CPU_CHUNK if torch.device(device).type == "cpu" else GPU_CHUNK).of(inputs)
    max_rows = max(1, 2 * size.rows // max(n_paths, 2))
    results: tuple[np.ndarray, ...] = ()
    for rows, padded_rows, length in inference_batches(inputs, max_rows, size.tokens):
        try:
            values = run(len(rows), padded_rows, length)
        except NotFiniteError as error:  # the other rows of the batch only fill it up
            raise inputs.refusal(rows[error.rows[error.rows < len(rows)]]) from None
        parts = [value.cpu().numpy() for value in values]
        if not results:
            results = tuple(np.empty((len(inputs), *p.shape[1:]), p.dtype) for p in parts)
        for result, part in zip(results, parts, strict=True):
            result[rows] = part[: len(rows)]
    tensors = tuple(torch.from_numpy(result) for result in results)
    bad = [rows_not_finite(result) for result in tensors]
    if any(map(len, bad)):
        raise inputs.refusal(np.unique(np.concatenate(bad)))
    return tensors
