"""The Gaussian law of one step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianTransition:
    """The Gaussian law of the next state of every token of a batch (eq. 1.2).

    ``mean + sqrt(shared_variance) U z + sqrt(token_variance) * eps`` with one ``z`` per example,
    shared by its tokens, and an independent ``eps`` per token and channel. Padding tokens carry
    no noise.

    Attributes
    ----------
    mean : Tensor of shape (n, t, d)
    factor : Tensor of shape (d, r)
        ``U``, the token-shared noise directions.
    shared_variance : Tensor of shape (n,)
    token_variance : Tensor of shape (n, 1, d)
    mask : Tensor of shape (n, t) or None
        True for real tokens; None when all are.
    """

    mean: Tensor
    factor: Tensor
    shared_variance: Tensor
    token_variance: Tensor
    mask: Tensor | None = None

    def sample(self, z: Tensor, eps: Tensor) -> Tensor:
        """Draw the next state (n, t, d) from standard normals.

        Parameters
        ----------
        z : Tensor of shape (n, r)
        eps : Tensor of shape (n, t, d)
        """
        shared = self.shared_variance.sqrt()[:, None] * (z @ self.factor.T)
        noise = shared[:, None, :] + self.token_variance.sqrt() * eps
        if self.mask is not None:
            noise = noise * self.mask[..., None]
        return self.mean + noise

    def mean_variance(self) -> Tensor:
        """Return the variance of each example (n,), mean over tokens and channels (eq. 7.2)."""
        per_channel = self.factor.square().sum(1).mean()
        return self.shared_variance * per_channel + self.token_variance.mean((1, 2))

    def tile(self, k: int) -> "GaussianTransition":
        """Return the law of the same examples for k paths each, path by path."""
        return GaussianTransition(
            tile(self.mean, k),
            self.factor,
            tile(self.shared_variance, k),
            tile(self.token_variance, k),
            None if self.mask is None else tile(self.mask, k),
        )


def tile(x: Tensor, k: int) -> Tensor:
    """Repeat the examples (n, ...) path by path, to (k * n, ...)."""
    return x.repeat(k, *[1] * (x.ndim - 1))


def gaussian_kl(mean_q: Tensor, variance_q: Tensor, mean_p: Tensor, variance_p: Tensor) -> Tensor:
    """Return ``KL(N(mean_q, variance_q) || N(mean_p, variance_p))`` in nats (eq. 3.3)."""
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1 - torch.log(ratio) + (mean_q - mean_p).square() / variance_p)
