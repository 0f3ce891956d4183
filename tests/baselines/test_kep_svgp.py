import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

from sklearn_diffuq.baselines._gaussian_attention import Projections, split_heads
from sklearn_diffuq.baselines._kernel_eigen_attention import KernelEigenAttention, landmarks


@pytest.fixture
def attention():
    """Return an attention of two heads of width 3, rank 2 and 6 landmarks, in float64."""
    query, key = torch.nn.Linear(5, 6), torch.nn.Linear(5, 6)
    parts = torch.randn(2, 2, 6, 2), torch.randn(2, 2) / 2, torch.randn(2, 2, 3)
    found = KernelEigenAttention(query, key, 2, *parts, 7).double()
    torch.nn.init.normal_(found.factor, std=0.5)
    return found.eval()


def kernel_of(attention, x, head, n_heads=2):
    """Return the cosines of all queries with all keys of one row, (t, t)."""
    layers = attention.query, attention.key
    q, k = (split_heads(layer(x)[None], n_heads)[0, head].detach() for layer in layers)
    return F.normalize(q, dim=1) @ F.normalize(k, dim=1).T


def inducing(attention, head, channel):
    """Return mean and covariance of the inducing variables, and their prior's deviations."""
    singular = attention.log_singular[head].detach().exp()
    factor = attention.factor[head, channel].detach()
    factor = factor.tril(-1) + torch.diag(factor.diagonal().exp())
    mean = singular * attention.mean[head, :, channel].detach()
    root = torch.diag(singular) @ factor
    return mean, root @ root.T, singular


def posterior(attention, x, head, channel):
    """Return (E + R) Lambda^-1 m and (E + R) Lambda^-1 S Lambda^-1 (E + R)^T."""
    kernel = kernel_of(attention, x, head)
    left, right = attention.weights[:, head].detach()
    m, s, singular = inducing(attention, head, channel)
    to_output = (kernel @ left + kernel.T @ right) @ torch.diag(1 / singular)
    return to_output @ m, to_output @ s @ to_output.T


def test_mean_and_covariance_are_those_of_the_eigen_pair(attention):
    x = torch.randn(1, 6, 5, dtype=torch.float64)  # as many tokens as landmarks
    means = attention(x).detach().view(6, 2, 3)
    draws = []
    for attention.sample in range(1500):
        draws.append(attention(x).detach().view(6, 2, 3))
    draws = torch.stack(draws)
    for head, channel in ((0, 0), (1, 2)):
        mean, covariance = posterior(attention, x[0], head, channel)
        torch.testing.assert_close(means[:, head, channel], mean)
        found = draws[:, :, head, channel].T.cov()
        atol = 0.15 * covariance.diagonal().max().item()
        torch.testing.assert_close(found, covariance, rtol=0, atol=atol)


def test_the_divergence_is_that_of_the_inducing_variables(attention):
    attention.train()
    attention(torch.randn(2, 6, 5, dtype=torch.float64))
    expected = 0.0
    for head in range(2):
        for channel in range(3):
            m, s, singular = inducing(attention, head, channel)
            prior = MultivariateNormal(torch.zeros(2).double(), torch.diag(singular**2))
            expected += kl_divergence(MultivariateNormal(m, s), prior).item()
    own, common = attention.divergence
    assert own == 0
    assert common.item() == pytest.approx(expected, rel=1e-6)


def test_the_misfit_vanishes_at_the_singular_value_decomposition(attention):
    x = torch.randn(1, 6, 5, dtype=torch.float64)
    attention.train()
    attention(x)
    assert attention.misfit > 1e-3
    for head in range(2):
        u, values, vh = torch.linalg.svd(kernel_of(attention, x[0], head))
        attention.weights.data[0, head] = vh.T[:, :2] / 6**0.5
        attention.weights.data[1, head] = u[:, :2] / 6**0.5
        attention.log_singular.data[head] = (values[:2] / 6).log()
    attention(x)
    assert attention.misfit.item() == pytest.approx(0, abs=1e-20)


def random_projections(n_rows, n_tokens, mask=None):
    """Return what one head of width 8 with random maps is given."""
    maps = [torch.nn.Linear(8, 8).double() for _ in range(3)]
    return Projections(*maps, 1, torch.randn(n_rows, n_tokens, 8, dtype=torch.float64), mask)


@torch.no_grad()
def start(projections, rank):
    return KernelEigenAttention.start(projections, rank, 0).eval()


def test_the_start_is_the_singular_value_decomposition():
    """With landmarks at all tokens, the scores are singular vectors whose signs belong together."""
    projections = random_projections(1, 12)
    attention, x = start(projections, 3), projections.states
    u, values, vh = np.linalg.svd(kernel_of(attention, x[0], 0, 1).numpy())
    e_and_r = (u + vh.T)[:, :3] * values[:3] / 12**0.5
    target = projections.attend()[0, 0].detach().numpy()
    ridge = Ridge(alpha=1e-3 * (e_and_r**2).sum() / 3, fit_intercept=False)
    expected = ridge.fit(e_and_r, target).predict(e_and_r)
    np.testing.assert_allclose(attention(x)[0].detach(), expected, atol=1e-10)
    singular = attention.log_singular[0].detach().exp()
    np.testing.assert_allclose(singular, values[:3] / 12, rtol=1e-10)
    attention.train()(x)
    assert attention.misfit.item() == pytest.approx(0, abs=1e-20)


def test_the_start_repeats_attention_along_the_singular_functions(monkeypatch):
    projections = random_projections(5, 12)
    attention = start(projections, 3)
    attention.mean.data = wanted = torch.randn(1, 3, 8, dtype=torch.float64)
    monkeypatch.setattr(Projections, "attend", lambda p: attention(p.states)[:, None].detach())
    torch.testing.assert_close(start(projections, 3).mean, wanted, rtol=0.02, atol=0.02)


def test_the_start_does_not_read_padding():
    mask = torch.tensor([[True] * 12, [True] * 8 + [False] * 4])
    projections = random_projections(2, 12, mask)
    before = start(projections, 2).state_dict()
    projections.states[1, 8:] = 3.0
    for name, value in start(projections, 2).state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_padding_is_not_read(attention):
    attention.sample = 3
    x = torch.randn(1, 6, 5, dtype=torch.float64)
    alone = attention(x)
    padded = torch.cat([x, torch.randn(1, 2, 5, dtype=torch.float64)], 1)
    mask = torch.arange(8)[None] < 6
    torch.testing.assert_close(attention(padded, mask)[:, :6], alone)


def test_a_gradient_reaches_every_parameter(attention):
    attention.train()
    output = attention(torch.randn(2, 7, 5, dtype=torch.float64))
    (output.sum() + sum(attention.divergence) + attention.misfit).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())


def test_landmarks_of_a_short_row_repeat():
    assert landmarks(torch.ones(1, 2, dtype=torch.bool), 4).tolist() == [[0, 0, 0, 1]]
