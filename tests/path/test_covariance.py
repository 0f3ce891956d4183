"""The covariance of the path against dense float64 answers."""

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from sklearn_diffuq._path.covariance import NoiseScales, StateCovariance, fit_covariance
from sklearn_diffuq._path.distance import GaussianProcessVariance, describe
from sklearn_diffuq._path.statistics import PathStatistics


def _states(n=60, p=4, seed=0):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed))


def test_posterior_variance_equals_scikit_learn():
    z, x = _states(), _states(20, seed=1) * 3
    process = GaussianProcessVariance(z, noise=0.1)
    kernel = Matern(length_scale=float(process.length), nu=0.5)
    reference = GaussianProcessRegressor(kernel, alpha=0.1, optimizer=None).fit(
        z.numpy(), torch.zeros(len(z)).numpy()
    )
    _, std = reference.predict(x.numpy(), return_std=True)
    torch.testing.assert_close(process.rho(x), torch.as_tensor(std**2), atol=1e-4, rtol=1e-4)


def test_posterior_variance_grows_away_from_the_data():
    process = GaussianProcessVariance(_states())
    direction = torch.nn.functional.normalize(torch.ones(1, 4))
    rho = process.rho(torch.linspace(2, 12, 6)[:, None] * direction)
    assert torch.all(rho.diff() > 0)
    assert rho[-1] > 0.99
    assert process.rho(_states()[:5]).max() < rho[5]


def test_description_ignores_padding():
    h = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4 + [False] * 2] * 3)
    torch.testing.assert_close(describe(h, mask), describe(h[:, :4]), atol=1e-6, rtol=1e-5)


def _statistics(n=80, steps=2, d=3):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(steps, d, d, generator=generator)
    states = {b: torch.randn(n, 3 * d, generator=generator) for b in range(steps + 1)}
    intervals = tuple((s, s + 1) for s in range(steps))
    variance = torch.rand(steps, d, generator=generator)
    return PathStatistics(intervals, variance, a @ a.mT, states, None)


def test_full_noise_rank_reproduces_the_pooled_covariance():
    statistics = _statistics()
    covariance = fit_covariance(statistics, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        covariance.factors @ covariance.factors.mT,
        statistics.pooled_second_moment,
        atol=1e-5,
        rtol=1e-4,
    )


def test_low_noise_rank_is_the_best_approximation():
    statistics = _statistics()
    u = fit_covariance(statistics, 1, torch.Generator().manual_seed(0)).factors[0]
    error = torch.linalg.matrix_norm(statistics.pooled_second_moment[0] - u @ u.T, ord=2)
    second = torch.linalg.svdvals(statistics.pooled_second_moment[0])[1]
    torch.testing.assert_close(error, second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scales", [NoiseScales(0.5, 0.2, 0.0), NoiseScales(0.5, 0.2, 0.7)])
def test_scales_multiply_the_variances(scales):
    covariance = fit_covariance(_statistics(), 2, torch.Generator().manual_seed(0))
    noisy = covariance.replace(scales=scales)
    h = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(1))
    v = noisy.growth(noisy.distance(h, 1))
    shared, token = noisy(v, 1)
    torch.testing.assert_close(v, torch.exp(2 * scales.distance * noisy.distance(h, 1)))
    torch.testing.assert_close(shared, 0.25 * v)
    torch.testing.assert_close(token, 0.04 * v[:, None, None] * covariance.token_variances[1])
    assert isinstance(noisy, StateCovariance)
    assert covariance.scales == NoiseScales()


def test_replace_leaves_the_original_alone():
    covariance = fit_covariance(_statistics(), 2, torch.Generator().manual_seed(0))
    before = covariance.token_variances.clone()
    covariance.replace(token_variances=torch.zeros_like(before))
    assert torch.equal(covariance.token_variances, before)


def test_a_time_grid_takes_its_steps_and_shares_the_rest():
    statistics = _statistics(steps=3)
    covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
    late = covariance.on((1, 2, 3))
    assert torch.equal(late.factor(0), covariance.factor(1))
    assert torch.equal(late.token_variance(1), covariance.token_variance(2))
    assert late.processes is covariance.processes


def test_no_directions_are_no_shared_noise():
    covariance = fit_covariance(_statistics(), 0, torch.Generator().manual_seed(0))
    assert covariance.factor(0).shape == (3, 0)


def test_states_of_one_token_have_a_distance_without_a_gradient():
    """Their standard deviation is zero, where a square root has no derivative."""
    covariance = fit_covariance(_statistics(), 2, torch.Generator().manual_seed(0))
    h = torch.randn(4, 1, 3, requires_grad=True)
    distance = covariance.distance(h, 1)
    assert torch.isfinite(distance).all()
    assert not distance.requires_grad
