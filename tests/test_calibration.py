"""Temperature and noise scales against optima that are known."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from sklearn_diffuq._calibration import (
    LinearisedPath,
    fit_noise,
    fit_temperature,
    moment_draws,
    path_nll,
)
from sklearn_diffuq._covariance import NoiseScales


def _labels(logits, seed=0):
    p = torch.softmax(logits.double(), -1)
    return torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


@pytest.mark.parametrize("temperature", [0.1, 0.6, 1.0, 7.8])
@pytest.mark.parametrize("n_classes", [2, 30])
def test_temperature_is_recovered(temperature, n_classes):
    logits = 2 * torch.randn(20_000, n_classes, generator=torch.Generator().manual_seed(0))
    y = _labels(logits)
    found, _ = fit_temperature(temperature * logits[None], y)
    assert found == pytest.approx(temperature, rel=0.05)


def test_temperature_minimises_the_loss_on_a_grid_and_stays_positive():
    logits = torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(0))
    y = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))  # no signal
    found, nll = fit_temperature(logits, y)
    assert found > 0
    grid = [float(path_nll(logits, y, t)) for t in np.geomspace(0.01, 100, 400)]
    assert nll <= min(grid) + 1e-6


def test_path_nll_averages_probabilities_and_weighs_rows():
    logits = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(7) % 3
    weight = torch.arange(7.0)
    loss = -torch.softmax(logits.double() / 2, -1).mean(0)[torch.arange(7), y].log()
    expected = (loss * weight).sum() / weight.sum()
    assert float(path_nll(logits, y, 2.0, weight)) == pytest.approx(float(expected), rel=1e-12)


def _linearised(margin, variance):
    """Return two-class rows whose margin has the given variance under unit shared noise."""
    n = len(margin)
    logits = torch.stack([torch.zeros(n), margin], 1).double()
    top = torch.arange(2).expand(n, 2)
    shared = torch.zeros(n, 1, 2, 2, dtype=torch.float64)
    shared[:, 0, 1, 1] = variance
    zeros = torch.zeros(n, 1, dtype=torch.float64)
    return LinearisedPath(logits, top, shared, torch.zeros_like(shared), zeros, zeros)


def test_moments_equal_one_dimensional_quadrature():
    margin = torch.tensor([-2.0, 0.3, 4.0])
    variance = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    draws = moment_draws(2, 0)
    logits = _linearised(margin, variance).sample(NoiseScales(0.8, 0.0, 0.0), draws)
    found = torch.softmax(logits, -1).mean(0)[:, 1]
    expected = [
        quad(lambda z, m=m, v=v: expit(m + 0.8 * np.sqrt(v) * z) * norm.pdf(z), -9, 9)[0]
        for m, v in zip(margin.tolist(), variance.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_noise_is_found_where_labels_show_it():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(4000, generator=generator)
    variance = torch.where(torch.arange(4000) % 2 == 0, 36.0, 0.01).double()
    noise = variance.sqrt() * torch.randn(4000, generator=generator).double()
    y = _labels(torch.stack([torch.zeros(4000).double(), margin + noise], 1))
    fit = fit_noise(_linearised(margin, variance), y, distance=False)
    assert fit.scales.shared == pytest.approx(1.0, rel=0.25)
    assert fit.temperature == pytest.approx(1.0, rel=0.15)
    assert fit.nll < fit_temperature(_linearised(margin, variance).logits[None], y)[1] - 0.01


def test_no_noise_is_reported_where_labels_show_none():
    margin = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    y = _labels(torch.stack([torch.zeros(500), margin], 1))
    fit = fit_noise(_linearised(margin, torch.ones(500).double()), y)
    assert fit.scales == NoiseScales()
    assert fit.temperature == pytest.approx(1.0, rel=0.15)
