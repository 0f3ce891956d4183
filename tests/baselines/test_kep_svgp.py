import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

from sklearn_diffuq.baselines._attention import Projections
from sklearn_diffuq.baselines._kep_svgp import KernelEigenAttention, landmarks


@pytest.fixture
def attention():
    """Return an attention of two heads of width 3, rank 2 and 6 landmarks, in float64."""
    query, key = torch.nn.Linear(5, 6), torch.nn.Linear(5, 6)
    parts = torch.randn(2, 2, 6, 2), torch.randn(2, 2) / 2, torch.randn(2, 2, 2, 3)
    found = KernelEigenAttention(query, key, 2, *parts, 7).double()
    torch.nn.init.normal_(found.factor, std=0.5)
    return found.eval()


def kernel_of(attention, x, head):
    """Return the cosines of all queries with all keys of one row, (t, t)."""
    q, k = (layer(x).view(-1, 2, 3)[:, head].detach() for layer in (attention.query, attention.key))
    return F.normalize(q, dim=1) @ F.normalize(k, dim=1).T


def inducing(attention, side, head, channel):
    """Return mean and covariance of the inducing variables, and their prior's deviations."""
    singular = attention.log_singular[head].detach().exp()
    factor = attention.factor[side, head, channel].detach()
    factor = factor.tril(-1) + torch.diag(factor.diagonal().exp())
    mean = singular * attention.mean[side, head, :, channel].detach()
    root = torch.diag(singular) @ factor
    return mean, root @ root.T, singular


def posterior(attention, x, head, channel):
    """Return E Lambda^-1 m and E Lambda^-1 S Lambda^-1 E^T, summed over the two sides."""
    kernel = kernel_of(attention, x, head)
    mean, covariance = 0, 0
    for side, at_landmarks in enumerate((kernel, kernel.T)):
        scores = at_landmarks @ attention.weights[side, head].detach()
        m, s, singular = inducing(attention, side, head, channel)
        to_output = scores @ torch.diag(1 / singular)
        mean = mean + to_output @ m
        covariance = covariance + to_output @ s @ to_output.T
    return mean, covariance


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
    for side in range(2):
        for head in range(2):
            for channel in range(3):
                m, s, singular = inducing(attention, side, head, channel)
                prior = MultivariateNormal(torch.zeros(2).double(), torch.diag(singular**2))
                expected += kl_divergence(MultivariateNormal(m, s), prior).item()
    assert attention.divergence.item() == pytest.approx(expected, rel=1e-6)


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


def test_the_start_repeats_the_attention_where_it_can():
    """With all directions of the kernel, attention of a single head is nearly reproduced."""
    query, key, value = (torch.nn.Linear(8, 8).double() for _ in range(3))
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    projections = Projections(query, key, value, 1, x)
    with torch.no_grad():
        attention = KernelEigenAttention.start(projections, 8, 0).eval()
        target = projections.attend()[:, 0]
        error = (attention(x) - target).square().mean() / target.square().mean()
    assert error < 0.05
    assert (attention.log_singular.diff() <= 1e-9).all()


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
    (output.sum() + attention.divergence + attention.misfit).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())


def test_landmarks_of_a_short_row_repeat():
    assert landmarks(torch.ones(1, 2, dtype=torch.bool), 4).tolist() == [[0, 0, 0, 1]]
