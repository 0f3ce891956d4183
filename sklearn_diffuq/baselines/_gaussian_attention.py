"""Attention as a Gaussian process: what its kinds share, and what they are initialised from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

_LOG_START_SCALE = -2.3  # a tenth of the prior's standard deviation


@dataclass(frozen=True, eq=False)
class Projections:
    """The linear maps of an attention, and its inputs on a batch.

    Attributes
    ----------
    query, key, value : torch.nn.Linear
    n_heads : int
    states : Tensor of shape (n, t, d)
        Inputs of the attention on a batch of training rows.
    mask : Tensor of shape (n, t) and dtype bool, or None
        True for real tokens.
    """

    query: torch.nn.Linear
    key: torch.nn.Linear
    value: torch.nn.Linear
    n_heads: int
    states: torch.Tensor
    mask: torch.Tensor | None = None

    def heads(self, name):
        """Return the states projected by one of the maps, (n, n_heads, t, width of a head)."""
        return split_heads(getattr(self, name)(self.states), self.n_heads)

    @cached_property
    def real(self):
        """Which tokens of the batch are real, shape (n, t), on the CPU."""
        shape = self.states.shape[:2]
        return torch.ones(shape, dtype=torch.bool) if self.mask is None else self.mask.cpu()

    def attend(self):
        """Return the softmax attention of the states, (n, n_heads, t, width of a head)."""
        seen = None if self.mask is None else self.mask[:, None, None]
        q, k, v = (self.heads(name) for name in ("query", "key", "value"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def split_heads(x, n_heads):
    """Turn (n, t, n_heads * width) into (n, n_heads, t, width)."""
    return x.unflatten(2, (n_heads, -1)).transpose(1, 2)


class GaussianAttention(torch.nn.Module, ABC):
    """Self-attention whose output is a draw from a Gaussian process posterior.

    In training mode, every row gets a new draw. In evaluation mode, all rows share draw number
    `sample`; None gives the posterior mean.

    Attributes
    ----------
    sample : int or None
    divergence : pair of scalar Tensor, or None
        Divergence of the posterior from the prior in the last call in training mode: the part of a
        row, averaged over the rows, and the part that all rows of a training set share.
    """

    def __init__(self, seed):
        super().__init__()
        self.seed, self.sample, self.divergence = seed, None, None
        self._drawn = {}

    def noise(self, like, kind, *shape):
        """Return standard normal numbers, shape (n or 1, *shape), like the tensor (n, ...)."""
        if self.training:
            return like.new_empty(len(like), *shape).normal_()
        if self.sample is None:
            return like.new_zeros(1, *shape)
        key = (self.sample, kind, shape)
        if key not in self._drawn:
            rng = np.random.default_rng([self.seed, self.sample, kind])
            self._drawn[key] = torch.from_numpy(rng.standard_normal((1, *shape)))
        return self._drawn[key].to(like)

    def forward(self, x, mask=None):
        """Map states (n, t, d) and real tokens (n, t) to (n, t, n_heads * width of a head)."""
        output, *divergence = self.attend(x, mask)
        self.divergence = divergence if self.training else None
        return output.transpose(1, 2).flatten(2)

    @abstractmethod
    def attend(self, x, mask):
        """Return the draw (n, n_heads, t, width of a head) and both parts of the divergence."""


# Covariances of inducing variables -------------------------------------------------------------
#
# In units of the prior, the covariance of a channel is T T^T. A parameter `factor` holds the lower
# triangular T: its entries below the diagonal, and the logarithm of the diagonal.


def initial_factor(n_heads, width, size, like):
    """Return a factor (n_heads, width, size, size) of narrow posteriors, like another tensor."""
    return (_LOG_START_SCALE * torch.eye(size).to(like)).repeat(n_heads, width, 1, 1)


def lower_triangle(factor):
    """Return T."""
    return factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=2, dim2=3).exp())


def covariance_excess(factor, triangle):
    """Return ``tr(T T^T) - size - log det(T T^T)``, summed over all channels.

    Half of it is the divergence of N(0, T T^T) from N(0, I). `triangle` is T, which callers have
    already computed.
    """
    log_diagonal = factor.diagonal(dim1=2, dim2=3)
    return triangle.square().sum() - log_diagonal.numel() - 2 * log_diagonal.sum()
