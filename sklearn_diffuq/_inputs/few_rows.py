"""Chunks of few rows, where they give the same bits as a full chunk."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs

# (batch, number of rows of the full chunk that it stands for) -> values, and what is only compared
Tensors: TypeAlias = tuple[Tensor, ...]
Run: TypeAlias = Callable[[dict[str, Tensor], int], tuple[Tensors, Tensors]]


@dataclass
class FewRows:
    """Which numbers of rows are known to give the bits of a full chunk.

    All chunks of a shape have the same number of rows, since a matrix product of fewer rows may sum
    in another order, and then a row's answer would depend on its company. For a single row that is
    a high price. So a smaller chunk is tried once beside a full one; if all bits agree, those of
    states included, it replaces it from then on. The order of a sum does not depend on what is
    summed; that needs many numbers to be compared, and none that were rounded on purpose.

    Attributes
    ----------
    agree : dict
        What was tried -> whether all bits agreed. Another process starts anew.
    """

    agree: dict[Hashable, bool] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type["FewRows"], tuple[()]]:
        return FewRows, ()

    def run(
        self,
        key: Hashable,
        function: Run,
        inputs: EncodedInputs,
        n_rows: int,
        padded_rows: np.ndarray,
        length: int | None,
        device: str | torch.device,
    ) -> tuple[Tensor, ...]:
        """Return the values of the first `n_rows` of the rows of a full chunk, or of more.

        Parameters
        ----------
        key : hashable
            Tells apart what gives other bits.
        function : callable
        inputs : EncodedInputs
        n_rows : int
        padded_rows : ndarray of int
        length : int or None
            Of the padded texts.
        device : str or torch.device
        """
        full = len(padded_rows)

        def call(size: int) -> tuple[Tensors, Tensors]:
            return function(inputs.batch(padded_rows[:size], length, device), full)

        lengths = inputs.lengths
        is_longest = lengths is not None and bool(lengths[padded_rows[0]] == length)  # no padding
        kind = key, str(device), torch.get_num_threads(), length, is_longest, full
        size = self._size(kind, n_rows, full)
        if self.agree.get((kind, size), False):
            return call(size)[0]
        values, seen = call(full)
        if size < full:
            few, few_seen = call(size)
            pairs = zip((*values, *seen), (*few, *few_seen), strict=True)
            self.agree[kind, size] = all(torch.equal(a[:size], b[:size]) for a, b in pairs)
        return values

    def _size(self, kind: Hashable, n_rows: int, full: int) -> int:
        """Return the smallest of full, full / 2, full / 4, .. that holds the rows and may do."""
        sizes = [full >> i for i in range(full.bit_length())]
        return min(s for s in sizes if s >= n_rows and self.agree.get((kind, s), True))
