"""Attention as a sparse Gaussian process with a Gaussian kernel (the mathematics of SGPA)."""

import torch

from sklearn_diffuq.baselines._gaussian_attention import (
    GaussianAttention,
    covariance_excess,
    initial_factor,
    lower_triangle,
    split_heads,
)

_JITTER = 1e-4  # share of the kernel's variance added to the diagonal


class SparseGPAttention(GaussianAttention):
    """Decoupled sparse GP posterior over the outputs of one attention layer.

    With queries q, which are the keys too, values v, inducing points g of each head, and the kernel
    ``K(a, b) = variance exp(-1/2 sum_d (a_d - b_d)^2 / length_scale_d^2)``, channel c of a head has

        mean = K_qq v_c - K_qg K_gg^-1 K_gq v_c + K_qg w_c
        cov  = K_qq + K_qg K_gg^-1 (S_c - K_gg) K_gg^-1 K_gq

    where ``S_c = L T_c T_c^T L^T`` with ``K_gg = L L^T`` and lower triangular `T_c`.

    Attributes
    ----------
    log_variance : Parameter of shape (n_heads,)
    log_length_scale : Parameter of shape (n_heads, width)
        One for each channel of the queries.
    inducing : Parameter of shape (n_heads, M, width)
    inducing_values : Parameter of shape (n_heads, M, width)
        w of each channel.
    factor : Parameter of shape (n_heads, width, M, M)
        T of each channel below the diagonal, and the logarithm of its diagonal.
    """

    def __init__(self, query, value, n_heads, inducing, log_variance, log_length_scale, seed):
        super().__init__(seed)
        self.query, self.value, self.n_heads = query, value, n_heads
        self.log_variance = torch.nn.Parameter(log_variance)
        self.log_length_scale = torch.nn.Parameter(log_length_scale)
        self.inducing = torch.nn.Parameter(inducing)
        n_inducing = inducing.shape[1]
        width = value.out_features // n_heads
        self.inducing_values = torch.nn.Parameter(inducing.new_zeros(n_heads, n_inducing, width))
        self.factor = torch.nn.Parameter(initial_factor(n_heads, width, n_inducing, inducing))

    @classmethod
    def start(cls, projections, n_inducing, seed, rng):
        """Return an attention initialised from that of the wrapped model."""
        q, real = projections.heads("query"), projections.real
        tokens = q.transpose(1, 2)[real.to(q.device)]  # (n_tokens, n_heads, width)
        chosen = tokens[rng.permutation(len(tokens))[:n_inducing]].transpose(0, 1)
        some = tokens[rng.permutation(len(tokens))[:256]].transpose(0, 1)
        length_scale = torch.cdist(some, some).flatten(1).median(1).values.clamp(min=1e-3)
        distance = torch.cdist(q, q) / length_scale[:, None, None]
        seen = real.to(q)[:, None, None]
        row_sum = ((-0.5 * distance.square()).exp() * seen).sum(3).transpose(1, 2)
        row_sum = row_sum[real.to(q.device)].mean(0)
        return cls(
            projections.query,
            projections.value,
            projections.n_heads,
            chosen.clone(),
            -row_sum.log(),
            length_scale.log()[:, None].repeat(1, q.shape[3]),
            seed,
        )

    def kernel(self, a, b):
        """Return the kernel of points (..., n_heads, i, width) and (..., n_heads, j, width)."""
        scale = self.log_length_scale.exp()[:, None]
        a, b = a / scale, b / scale
        # not cdist: its gradient at distance zero is not defined
        squares = a.square().sum(-1)[..., None] + b.square().sum(-1)[..., None, :]
        distance = (squares - 2 * a @ b.mT).clamp(min=0)
        return torch.exp(self.log_variance[:, None, None] - 0.5 * distance)

    def attend(self, x, mask):
        q, v = (split_heads(layer(x), self.n_heads) for layer in (self.query, self.value))
        among, cross = self.kernel(q, q), self.kernel(self.inducing, q)
        lower = self._inducing_cholesky()
        half = torch.linalg.solve_triangular(lower, cross, upper=False)  # (n, n_heads, M, t)
        if mask is not None:  # nothing is read from padding
            v = v * mask[:, None, :, None]
        mean = among @ v - half.mT @ (half @ v) + cross.mT @ self.inducing_values
        triangle = lower_triangle(self.factor)
        eps = self.noise(x, 0, *triangle.shape[:-1])
        shared = torch.einsum("hcij,nhcj->nhic", triangle, eps)
        variance = self.log_variance.exp()[:, None] - half.square().sum(2)
        # tokens first: a token's draw does not depend on how many there are
        own = self.noise(x, 1, x.shape[1], *triangle.shape[:2]).transpose(1, 2)
        output = mean + half.mT @ shared + variance.clamp(min=1e-12).sqrt()[..., None] * own
        return output, self._amortised(v, among, half), self._inducing_divergence(lower, triangle)

    def _inducing_cholesky(self):
        jitter = _JITTER * self.log_variance.exp()[:, None, None]
        identity = torch.eye(self.inducing.shape[1]).to(self.inducing)
        return torch.linalg.cholesky(self.kernel(self.inducing, self.inducing) + jitter * identity)

    def _amortised(self, v, among, half):
        """Return the divergence that the values of a row add, averaged over rows."""
        explained = half @ v
        return 0.5 * ((v * (among @ v)).sum((1, 2, 3)) - explained.square().sum((1, 2, 3))).mean()

    def _inducing_divergence(self, lower, triangle):
        """Return the divergence of the inducing variables from their prior."""
        weights = (lower.mT @ self.inducing_values).square().sum()
        return 0.5 * (weights + covariance_excess(self.factor, triangle))
