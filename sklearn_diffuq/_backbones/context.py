"""What every block needs of a batch besides the hidden state."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = dict[str, Tensor]  # the model inputs, samples on the first axis
Call: TypeAlias = tuple[tuple, dict[str, Any]]  # the arguments of a block


@dataclass(frozen=True)
class RealTokens:
    """What means over real tokens need, computed once for all states of a batch.

    Attributes
    ----------
    mask : torch.Tensor of shape (n, t) and dtype bool
        True for real tokens.
    padding : torch.Tensor of shape (n, t, 1) and dtype bool
    weights : torch.Tensor of shape (n, 1, t)
        Of real tokens in their mean, zero for padding.
    """

    mask: Tensor
    padding: Tensor
    weights: Tensor

    @classmethod
    def of(cls, mask: Tensor | None) -> "RealTokens | None":
        """Take the real tokens of a mask; None where all are."""
        if mask is None:
            return None
        weights = mask.float()
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
        return cls(mask, ~mask[..., None], weights[:, None])


@dataclass(frozen=True, eq=False)
class Context:
    """What one batch needs to be pushed through the blocks and the readout.

    Attributes
    ----------
    batch : dict of str to torch.Tensor
        The model inputs.
    mask : torch.Tensor of shape (n, t) and dtype bool, or None
        True for a real token, False for padding. None: every token is real.
    calls : sequence of (tuple, dict)
        The arguments each block is called with, without the hidden state.
    slots : tuple of int or str
        Where the hidden state goes in each block's arguments: a position or a keyword.
    """

    batch: Batch
    mask: Tensor | None
    calls: Sequence[Call]
    slots: tuple[int | str, ...]

    @property
    def beyond(self) -> Tensor | None:
        """How far outside of the training range each row is, (n,), where a table says so."""
        return self.batch.get("beyond_range")

    @cached_property
    def real(self) -> RealTokens | None:
        """The real tokens; None where all are."""
        return RealTokens.of(self.mask)

    def arguments(self, k: int, h: Tensor) -> Call:
        """Return the ``(args, kwargs)`` that call block `k` on the state `h`."""
        (args, kwargs), slot = self.calls[k], self.slots[k]
        if isinstance(slot, int):
            return (*args[:slot], h, *args[slot:]), dict(kwargs)
        return args, {**kwargs, slot: h}


def damped(logits: Tensor, beyond: Tensor | None) -> Tensor:
    """Return the logits (n, k) of rows that are so far outside of the training range (eq. 1.12).

    No network knows what comes there. The less confident answer is that of a higher temperature.
    """
    return logits if beyond is None else logits * torch.exp(-beyond)[:, None]


def token_mask(batch: Batch, h: Tensor) -> Tensor | None:
    """Return the batch's attention mask if it has one entry per token of the state, else None."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != h.shape[:2]:
        return None
    return mask.to(torch.bool)


def mean_over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over real tokens.

    Parameters
    ----------
    values : Tensor of shape (n, t) or (n, t, d)
    mask : Tensor of shape (n, t) and dtype bool, or None
        True for real tokens; None when all are.

    Returns
    -------
    mean : Tensor of shape (n,) or (n, d)
    """
    if mask is None:
        return values.mean(1)
    count = mask.sum(1).clamp_min(1)
    if values.ndim == 3:
        mask, count = mask[..., None], count[:, None]
    return values.masked_fill(~mask, 0.0).sum(1) / count
