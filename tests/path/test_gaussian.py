"""Gaussian laws of one step, and their divergence."""

from dataclasses import replace

import pytest
import torch

from sklearn_diffuq._path.gaussian import GaussianTransition, gaussian_kl, tile


def _transition(n=3, t=4, d=5, r=2):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    mask = torch.ones(n, t, dtype=torch.bool)
    mask[0, 2:] = False
    return GaussianTransition(draw(n, t, d), draw(d, r), draw(n), draw(n, 1, d), mask)


def test_samples_have_the_stated_covariance():
    law = _transition()
    n, t, d = law.mean.shape
    k, generator = 40_000, torch.Generator().manual_seed(1)
    z = torch.randn(k, n, law.factor.shape[1], generator=generator)
    eps = torch.randn(k, n, t, d, generator=generator)
    x = torch.stack([law.sample(a, b) for a, b in zip(z, eps, strict=True)]) - law.mean
    row = 1
    flat = x[:, row].reshape(k, -1)
    shared = law.shared_variance[row] * law.factor @ law.factor.T
    expected = shared.repeat(t, t) + torch.diag(law.token_variance[row].repeat(t, 1).reshape(-1))
    torch.testing.assert_close(flat.T @ flat / k, expected, atol=0.05, rtol=0)
    torch.testing.assert_close(law.mean_variance()[row], expected.diagonal().mean())


def test_padding_carries_no_noise():
    law = _transition()
    x = law.sample(torch.ones(3, 2), torch.ones(3, 4, 5))
    assert torch.equal(x[0, 2:], law.mean[0, 2:])
    assert not torch.equal(x[0, :2], law.mean[0, :2])


def test_tiled_examples_come_path_by_path():
    x = torch.arange(12.0).reshape(3, 2, 2)
    assert torch.equal(tile(x, 4).unflatten(0, (4, 3)), x.expand(4, -1, -1, -1))
    assert torch.equal(tile(x[:, 0, 0], 2), torch.tensor([0.0, 4.0, 8.0, 0.0, 4.0, 8.0]))


@pytest.mark.parametrize("with_mask", [True, False])
def test_a_tiled_law_draws_for_each_path_what_the_law_draws(with_mask):
    law = _transition()
    law = law if with_mask else replace(law, mask=None)
    k, generator = 4, torch.Generator().manual_seed(1)
    z = torch.randn(k, 3, 2, generator=generator)
    eps = torch.randn(k, 3, 4, 5, generator=generator)
    tiled = law.tile(k)
    drawn = tiled.sample(z.flatten(0, 1), eps.flatten(0, 1)).unflatten(0, (k, 3))
    torch.testing.assert_close(drawn, torch.stack([law.sample(*of) for of in zip(z, eps)]))
    assert torch.equal(drawn[:, 0, 2:], law.mean[0, 2:].expand(k, -1, -1)) == with_mask
    assert torch.equal(tiled.mean_variance(), tile(law.mean_variance(), k))
    assert (tiled.mask is None) == (not with_mask)


def test_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    m_q, m_p = torch.randn(2, 50, generator=generator)
    v_q, v_p = torch.rand(2, 50, generator=generator) + 0.1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(m_q, v_q.sqrt()), torch.distributions.Normal(m_p, v_p.sqrt())
    )
    torch.testing.assert_close(gaussian_kl(m_q, v_q, m_p, v_p), expected)
