"""The path: time grid, Gaussian laws, and their divergence."""

import numpy as np
import pytest
import torch

from sklearn_diffuq._path.gaussian import GaussianTransition, gaussian_kl
from sklearn_diffuq._path.time_grid import time_grid


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 12])
def test_time_grid_is_strictly_increasing_and_covers_all_blocks(n_blocks):
    for n_steps in range(1, n_blocks + 1):
        grid = time_grid(n_blocks, n_steps)
        assert grid[0] == 0
        assert grid[-1] == n_blocks
        assert len(grid) == n_steps + 1
        assert np.all(np.diff(grid) >= 1)
        assert np.ptp(np.diff(grid)) <= 1


@pytest.mark.parametrize("n_steps", [0, 7])
def test_time_grid_names_what_is_possible(n_steps):
    with pytest.raises(ValueError, match=f"n_steps={n_steps}.*6 blocks.*between 1 and 6"):
        time_grid(6, n_steps)


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


def test_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    m_q, m_p = torch.randn(2, 50, generator=generator)
    v_q, v_p = torch.rand(2, 50, generator=generator) + 0.1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(m_q, v_q.sqrt()), torch.distributions.Normal(m_p, v_p.sqrt())
    )
    torch.testing.assert_close(gaussian_kl(m_q, v_q, m_p, v_p), expected)
