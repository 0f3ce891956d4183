"""The Gaussian law of one step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GaussianTransition:
    """The Gaussian law of the next state of every token of a batch.

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
    distance : Tensor of shape (n, m) or None
        Standardised distances to the training data of the judged states (see `GaussianPath`) that
        this step is the first to see: the one it starts from, and with the last step also the one
        it ends in. None where there are none, or nothing depends on them.
    """

    mean: Tensor
    factor: Tensor
    shared_variance: Tensor
    token_variance: Tensor
    mask: Tensor | None = None
    distance: Tensor | None = None

    def sample(self, z, eps):
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

    def mean_variance(self):
        """Return the variance of each example, averaged over real tokens and channels, (n,)."""
        per_channel = self.factor.square().sum(1).mean()
        return self.shared_variance * per_channel + self.token_variance.mean((1, 2))


def gaussian_kl(mean_q, variance_q, mean_p, variance_p):
    """Return ``KL(N(mean_q, variance_q) || N(mean_p, variance_p))`` per element, in nats."""
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1 - ratio.log() + (mean_q - mean_p).square() / variance_p)
