import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.gaussian_process.kernels import RBF
from torch.distributions import MultivariateNormal, kl_divergence

from sklearn_diffuq.baselines._gaussian_attention import Projections
from sklearn_diffuq.baselines._sparse_gp_attention import SparseGPAttention


@pytest.fixture
def attention():
    """Return an attention of two heads of width 3 with 4 inducing points, in float64."""
    query, value = torch.nn.Linear(5, 6), torch.nn.Linear(5, 6)
    log_variance = torch.tensor([0.3, -0.5])
    log_length_scale = torch.tensor([[0.1, 0.6, -0.2], [0.4, -0.3, 0.5]])
    inducing = torch.randn(2, 4, 3)
    found = SparseGPAttention(query, value, 2, inducing, log_variance, log_length_scale, 7)
    found = found.double()
    for parameter in (found.inducing_values, found.factor):
        torch.nn.init.normal_(parameter, std=0.5)
    return found.eval()


def posterior(attention, x, head, channel):
    """Return mean and covariance over the tokens of one row, from the equations of the paper."""
    q = attention.query(x).view(-1, 2, 3)[:, head].detach().numpy()
    v = attention.value(x).view(-1, 2, 3)[:, head, channel].detach()
    g = attention.inducing[head].detach().numpy()
    variance = attention.log_variance[head].exp().item()
    kernel = RBF(attention.log_length_scale[head].detach().exp().numpy())  # one per channel
    k_qq, k_qg, k_gg = (
        variance * torch.from_numpy(kernel(*pair)) for pair in ((q, q), (q, g), (g, g))
    )
    k_gg = k_gg + 1e-4 * variance * torch.eye(4)
    t = attention.factor[head, channel].detach()
    t = t.tril(-1) + torch.diag(t.diagonal().exp())
    lower = torch.linalg.cholesky(k_gg)
    s = lower @ t @ t.T @ lower.T
    to_q = k_qg @ torch.linalg.inv(k_gg)
    w = attention.inducing_values[head, :, channel].detach()
    mean = k_qq @ v - to_q @ k_qg.T @ v + k_qg @ w
    return mean, k_qq + to_q @ (s - k_gg) @ to_q.T, (v, w, k_qq - to_q @ k_qg.T, k_gg, s)


def test_mean_and_variance_are_those_of_the_decoupled_posterior(attention):
    x = torch.randn(1, 6, 5, dtype=torch.float64)
    means = attention(x).detach().view(6, 2, 3)
    draws = []
    for attention.sample in range(1000):
        draws.append(attention(x).detach().view(6, 2, 3))
    draws = torch.stack(draws)
    for head, channel in ((0, 0), (1, 2)):
        mean, covariance, _ = posterior(attention, x[0], head, channel)
        torch.testing.assert_close(means[:, head, channel], mean)
        found = draws[:, :, head, channel]
        error = (found.mean(0) - mean) / covariance.diagonal().sqrt()
        assert error.abs().max() < 4.5 / 1000**0.5
        torch.testing.assert_close(found.var(0), covariance.diagonal(), rtol=0.15, atol=0)


def test_the_divergence_is_that_of_the_amortised_and_the_inducing_part(attention):
    """Half the squared norm outside the span of the inducing points, and KL of q(u) there."""
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    attention.train()
    attention(x)
    amortised, inducing = 0.0, 0.0
    for head in range(2):
        for channel in range(3):
            for row in x:
                _, _, (v, w, residual, k_gg, s) = posterior(attention, row, head, channel)
                prior = MultivariateNormal(torch.zeros(4).double(), k_gg)
                inducing += 0.5 * kl_divergence(MultivariateNormal(k_gg @ w, s), prior).item()
                amortised += 0.5 * (0.5 * v @ residual @ v).item()
    own, common = attention.divergence
    assert own.item() == pytest.approx(amortised, rel=1e-6)
    assert common.item() == pytest.approx(inducing, rel=1e-6)


def test_padding_is_not_read(attention):
    attention.sample = 3
    x = torch.randn(1, 6, 5, dtype=torch.float64)
    alone = attention(x)
    padded = torch.cat([x, torch.randn(1, 2, 5, dtype=torch.float64)], 1)
    mask = torch.arange(8)[None] < 6
    torch.testing.assert_close(attention(padded, mask)[:, :6], alone)


def test_a_gradient_reaches_every_parameter(attention):
    attention.train()
    output = attention(torch.randn(2, 6, 5, dtype=torch.float64))
    (output.sum() + sum(attention.divergence)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())


def test_the_start_has_the_median_distance_in_every_channel_and_row_sums_of_one():
    query, key, value = (torch.nn.Linear(5, 6).double() for _ in range(3))
    x = torch.randn(3, 8, 5, dtype=torch.float64)
    projections = Projections(query, key, value, 2, x)
    with torch.no_grad():
        attention = SparseGPAttention.start(projections, 4, 0, np.random.default_rng(0))
        q = projections.heads("query")
        row_sums = attention.kernel(q, q).sum(3).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(row_sums.mean(0), torch.ones(2, dtype=torch.float64))
    assert attention.log_length_scale.shape == (2, 3)
    for head in range(2):
        # zeros: the distances of the tokens to themselves
        distances = [*np.repeat(pdist(q[:, head].flatten(0, 1)), 2), *np.zeros(24)]
        median = np.sort(distances)[(len(distances) - 1) // 2]  # the lower one, as in torch
        expected = torch.full((3,), median, dtype=torch.float64)
        torch.testing.assert_close(attention.log_length_scale[head].exp(), expected)
