"""Temperature and noise scales against optima that are known."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from tiny_backbones import ALL

from sklearn_diffuq import _calibration
from sklearn_diffuq._calibration import (
    Calibration,
    LinearisedPath,
    calibrate,
    fit_noise,
    fit_temperature,
    linearise,
    moment_draws,
    path_nll,
)
from sklearn_diffuq._covariance import NoiseScales, fit_covariance
from sklearn_diffuq._inputs import Dense, EncodedInputs, LabelledInputs
from sklearn_diffuq._path import BlockwiseMean, GaussianPath, time_grid
from sklearn_diffuq._propagation import PathNoise, propagate
from sklearn_diffuq._statistics import collect_statistics
from sklearn_diffuq.backbones import Backbone


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


def test_temperature_minimises_the_penalised_loss_on_a_grid():
    logits = torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(0))
    y = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))  # no signal

    def loss(t):
        return float(path_nll(logits, y, t)) + np.log(t) ** 2 / 400

    found, nll = fit_temperature(logits, y)
    assert loss(found) <= min(loss(t) for t in np.geomspace(0.01, 100, 400)) + 1e-6
    assert nll == pytest.approx(float(path_nll(logits, y, found)))


def test_temperature_stays_moderate_where_every_row_is_right():
    logits = torch.tensor([[[4.0, 0.0]]]).expand(1, 50, 2)
    found, _ = fit_temperature(logits, torch.zeros(50, dtype=torch.long))
    assert 0.3 < found < 1


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


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scales", [NoiseScales(1e-3, 0, 0.5), NoiseScales(0, 1e-3, 0.0)])
def test_linearised_covariance_equals_that_of_paths_with_little_noise(name, scales):
    backbone, batch = ALL[name]()
    grid = time_grid(backbone.n_blocks, 2)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], grid, with_moments=False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone, grid), covariance.replace(scales))
        law = linearise(path, backbone, batch)
        logits, variance = propagate(path, backbone, batch, PathNoise.of(path, 4000, seed=0))
    ordered = logits.detach().double().gather(2, law.top.expand(len(logits), -1, -1))
    spread = ordered - ordered.mean(0)
    expected = torch.einsum("kni,knj->nij", spread, spread) / len(logits)
    found = law.covariance(scales.shared, scales.token, scales.distance)
    scale = expected.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(found / scale, expected / scale, atol=0.1, rtol=0)
    torch.testing.assert_close(law.variance.float(), variance.detach(), rtol=0.02, atol=0)


def test_only_the_largest_logits_are_followed():
    backbone, batch = ALL["vit"]()
    grid = time_grid(4, 4)
    head = torch.nn.Linear(16, 30)
    backbone = Backbone(backbone.module, readout=head).probe(batch)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], grid, with_moments=False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        law = linearise(GaussianPath(BlockwiseMean(backbone, grid), covariance), backbone, batch)
        expected = backbone.logits(batch).topk(10).indices
    assert torch.equal(law.top, expected)
    drawn = law.sample(NoiseScales(0.5, 0.5, 0.0), moment_draws(30, 0))
    moved = (drawn.std(0) > 1e-9).sum(1)
    assert torch.all(moved == 10)


def test_noise_common_to_all_logits_changes_nothing():
    backbone, batch = ALL["vit"]()
    head = torch.nn.Linear(16, 30)
    with torch.no_grad():
        head.weight.copy_(3 * torch.randn(16).expand(30, 16))
    backbone = Backbone(backbone.module, readout=head).probe(batch)
    grid = time_grid(4, 4)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], grid, with_moments=False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        law = linearise(GaussianPath(BlockwiseMean(backbone, grid), covariance), backbone, batch)
    drawn = law.sample(NoiseScales(1.0, 1.0, 0.0), moment_draws(30, 0))
    expected = torch.softmax(law.logits, -1).expand(len(drawn), -1, -1)
    torch.testing.assert_close(torch.softmax(drawn, -1), expected, atol=1e-4, rtol=0)


def test_noise_pays_for_as_many_scales_as_are_free():
    decisions = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        margin = 4 * torch.randn(120, generator=generator)
        variance = torch.where(torch.arange(120) % 2 == 0, 36.0, 0.01).double()
        noise = variance.sqrt() * torch.randn(120, generator=generator).double()
        y = _labels(torch.stack([torch.zeros(120).double(), margin + noise], 1), seed)
        # The distance is zero everywhere, so a third scale gains nothing but has its price.
        fits = [fit_noise(_linearised(margin, variance), y, distance=d) for d in (False, True)]
        decisions.append([fit.scales != NoiseScales() for fit in fits])
    assert decisions == [[True, True], [True, False]]


def test_paths_are_tried_on_random_rows_of_sorted_data(monkeypatch):
    backbone, _ = ALL["vit"]()
    x = torch.randn(90, 1, 16, 16)
    y = torch.arange(90) // 30
    held_out = LabelledInputs(EncodedInputs({"x": Dense(x.numpy())}), y, torch.ones(90))
    monkeypatch.setattr(_calibration, "MAX_SAMPLED_ROWS", 20)
    noisy = Calibration(NoiseScales(0.1, 0.1, 0.0), 1.0, 0.0)
    monkeypatch.setattr(_calibration, "fit_noise", lambda *args, **kwargs: noisy)
    seen = []

    def spy(logits, y, weight=None):
        seen.append(y)
        return fit_temperature(logits, y, weight)

    monkeypatch.setattr(_calibration, "fit_temperature", spy)
    grid = time_grid(4, 2)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [{"x": x}], grid, with_moments=False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone, grid), covariance)
        calibrate(path, backbone, held_out, noise=PathNoise.of(path, 2, seed=0))
    assert [len(part) for part in seen] == [90, 20, 20, 20, 20]
    assert torch.equal(torch.unique(seen[1]), torch.arange(3))
