"""Attention as a sparse Gaussian process along kernel-eigen pairs (the mathematics of KEP-SVGP)."""

import torch
from torch.nn import functional as F

from sklearn_diffuq.baselines._gaussian_attention import (
    GaussianAttention,
    covariance_excess,
    initial_factor,
    lower_triangle,
    split_heads,
)

_LANDMARKS_PER_RANK = 4
_RIDGE = 1e-3  # share of the mean square of the features


class KernelEigenAttention(GaussianAttention):
    """Sparse GP posterior along the pairs of singular functions of the attention kernel.

    With the scores e = (kernel at key landmarks) `left` and r = (kernel at query landmarks)
    `right` of a token, singular values Lambda, and inducing variables u ~ N(m, S) with prior
    N(0, Lambda^2), which both sides share, a channel of the output is

        (e + r) Lambda^-1 u

    Mean and factor are kept in units of the prior: m = Lambda `mean`, S = Lambda T T^T Lambda.

    Attributes
    ----------
    weights : Parameter of shape (2, n_heads, n_landmarks, rank)
        `left` and `right`.
    log_singular : Parameter of shape (n_heads, rank)
    mean : Parameter of shape (n_heads, rank, width)
    factor : Parameter of shape (n_heads, width, rank, rank)
        T of each channel below the diagonal, and the logarithm of its diagonal.
    misfit : Tensor or None
        Squared KSVD objective of the last call in training, summed over heads; it is zero at the
        singular value decomposition.
    """

    def __init__(self, query, key, n_heads, weights, log_singular, mean, seed):
        super().__init__(seed)
        self.query, self.key, self.n_heads, self.misfit = query, key, n_heads, None
        self.weights = torch.nn.Parameter(weights)
        self.log_singular = torch.nn.Parameter(log_singular)
        self.mean = torch.nn.Parameter(mean)
        n_heads, rank, width = mean.shape
        self.factor = torch.nn.Parameter(initial_factor(n_heads, width, rank, mean))

    @classmethod
    def start(cls, projections, rank, seed):
        """Return an attention initialised from that of the wrapped model."""
        q, k = (F.normalize(projections.heads(name), dim=3) for name in ("query", "key"))
        dtype, q, k = q.dtype, q.double(), k.double()
        real = projections.real.to(q.device)
        at = landmarks(real, _LANDMARKS_PER_RANK * rank)
        kernel = (_rows(q, at) @ _rows(k, at).mT).mean(0)
        weights = _singular_vectors(kernel, rank)
        scores = torch.stack(_project(q, k, at, weights)[0])
        # (n_heads, n_tokens, ...), real tokens only
        e_and_r = scores.sum(0).transpose(1, 2)[real].transpose(0, 1)
        target = projections.attend().transpose(1, 2)[real].transpose(0, 1).double()
        mean = _ridge(e_and_r, target)
        energy = scores.transpose(2, 3)[:, real].square().mean((0, 1))  # (n_heads, rank)
        log_singular = 0.5 * energy.clamp(min=1e-12).log()
        parts = (part.to(dtype) for part in (weights, log_singular, mean))
        return cls(projections.query, projections.key, projections.n_heads, *parts, seed)

    def attend(self, x, mask):
        q, k = (split_heads(layer(x), self.n_heads) for layer in (self.query, self.key))
        q, k = F.normalize(q, dim=3), F.normalize(k, dim=3)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        at = landmarks(real, self.weights.shape[2])
        scores, sides = _project(q, k, at, self.weights)
        triangle = lower_triangle(self.factor)
        eps = self.noise(x, 0, *triangle.shape[:-1])
        draw = self.mean + torch.einsum("hcij,nhcj->nhic", triangle, eps)
        self.misfit = self._ksvd(scores, sides, real) if self.training else None
        divergence = 0.5 * (self.mean.square().sum() + covariance_excess(self.factor, triangle))
        return sum(scores) @ draw, 0.0, divergence

    def _ksvd(self, scores, sides, real):
        """Return the squared KSVD objective, summed over heads."""
        tokens = torch.stack(scores).transpose(2, 3)[:, real]  # (2, n_tokens, n_heads, rank)
        energy = (tokens.square().mean(1) * torch.exp(-self.log_singular)).sum((0, 2))
        coupling = (sides[0] * sides[1]).sum((2, 3)).mean(0)
        return (0.5 * energy - coupling).square().sum()


def _rows(states, at):
    """Return the states (n, n_heads, t, width) at positions (n, M): (n, n_heads, M, width)."""
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states.transpose(1, 2)[rows, at].transpose(1, 2)


def _project(q, k, at, weights):
    """Return the scores of tokens on the left and right singular functions.

    Parameters
    ----------
    q, k : Tensor of shape (n, n_heads, t, width)
        Queries and keys of unit length.
    at : Tensor of shape (n, n_landmarks)
        Positions of the landmarks.
    weights : Tensor of shape (2, n_heads, n_landmarks, rank)

    Returns
    -------
    scores : pair of Tensor of shape (n, n_heads, t, rank)
        e of the queries and r of the keys.
    sides : pair of Tensor of shape (n, n_heads, width, rank)
        What queries and keys are multiplied by: weighted sums of the landmarks of the other side.
    """
    left, right = (_rows(b, at).mT @ w for b, w in zip((k, q), weights))
    return (q @ left, k @ right), (left, right)


def landmarks(real, n):
    """Return the positions of `n` evenly spaced real tokens, (n_rows, n).

    Parameters
    ----------
    real : Tensor of shape (n_rows, t) and dtype bool
    n : int

    Examples
    --------
    >>> import torch
    >>> real = torch.tensor([[True, True, True, True, True], [True, True, False, True, False]])
    >>> landmarks(real, 3)
    tensor([[0, 2, 4],
            [0, 1, 3]])
    """
    first = torch.argsort(~real, dim=1, stable=True)  # real tokens first
    last = real.sum(1, keepdim=True).clamp(min=1) - 1
    return first.gather(1, torch.arange(n, device=real.device) * last // max(n - 1, 1))


def _singular_vectors(kernel, rank):
    """Return weights (2, n_heads, n_landmarks, rank) of the leading pairs of singular functions.

    `kernel` has a row for each query landmark, and a column for each key landmark. The function of
    the queries is a combination of the kernel at the keys, hence of right singular vectors, and the
    other way round. The signs of a pair are determined together.
    """
    u, _, vh = torch.linalg.svd(kernel)
    return torch.stack([vh.mT, u])[..., :rank] / kernel.shape[1] ** 0.5


def _ridge(features, target):
    """Return the ridge regression (n_heads, n_features, width) of targets on features."""
    gram = features.mT @ features
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    identity = torch.eye(gram.shape[1]).to(gram)
    return torch.linalg.solve(gram + _RIDGE * mean * identity, features.mT @ target)
