"""The first-order law of the logits against paths, quadrature, and what is known of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from tiny_backbones import ALL

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._path.covariance import NoiseScales, fit_covariance
from sklearn_diffuq._path.path import BlockwiseMean, GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.linearised import LinearisedPath, linearise, moment_draws
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._propagation.noise import PathNoise
from sklearn_diffuq._propagation.propagate import propagate


def _linearised(margin, variance):
    """Return two-class rows whose margin has the given variance under unit shared noise."""
    n = len(margin)
    logits = torch.stack([torch.zeros(n), margin], 1).double()
    top = torch.arange(2).expand(n, 2)
    shared = torch.zeros(n, 1, 2, 2, dtype=torch.float64)
    shared[:, 0, 1, 1] = variance
    zeros = torch.zeros(n, 1, dtype=torch.float64)
    return LinearisedPath(logits, top, shared, torch.zeros_like(shared), zeros, zeros[:, 0])


def test_moments_equal_one_dimensional_quadrature():
    margin = torch.tensor([-2.0, 0.3, 4.0])
    variance = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    draws = moment_draws(2, 0)
    logits = _linearised(margin, variance).sample(0.8, 0.0, 0.0, draws)
    found = torch.softmax(logits, -1).mean(0)[:, 1]
    expected = [
        quad(lambda z, m=m, v=v: expit(m + 0.8 * np.sqrt(v) * z) * norm.pdf(z), -9, 9)[0]
        for m, v in zip(margin.tolist(), variance.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_near_ties_of_two_classes_do_not_flip():
    margin = torch.tensor([-1e-6, 1e-6]).repeat(20)
    logits = _linearised(margin, 9.0).sample(1.0, 0.0, 0.0, moment_draws(2, 0))
    found = torch.softmax(logits, -1).mean(0).argmax(1)
    np.testing.assert_array_equal(found, margin > 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scales", [NoiseScales(1e-3, 0, 0.5), NoiseScales(0, 1e-3, 0.0)])
def test_linearised_covariance_equals_that_of_paths_with_little_noise(name, scales):
    backbone, batch = ALL[name]()
    grid = time_grid(backbone.n_blocks, 2)
    with backbone.frozen(), torch.no_grad():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone, grid), covariance.replace(scales))
        law = linearise(path, backbone, batch)
        end = propagate(path, backbone, batch, PathNoise.of(path, 4000, seed=0))
    logits = end.outcome
    ordered = logits.detach().double().gather(2, law.top.expand(len(logits), -1, -1))
    spread = ordered - ordered.mean(0)
    expected = torch.einsum("kni,knj->nij", spread, spread) / len(logits)
    found = law.covariance(scales.shared, scales.token, scales.distance)
    scale = expected.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(found / scale, expected / scale, atol=0.1, rtol=0)
    if scales.distance:
        torch.testing.assert_close(law.distance.float(), end.distance, atol=0.05, rtol=0)


def test_only_the_largest_logits_are_followed():
    backbone, batch = ALL["vit"]()
    grid = time_grid(4, 4)
    head = torch.nn.Linear(16, 30)
    backbone = Backbone(backbone.module, readout=head).probe(batch)
    with backbone.frozen(), torch.no_grad():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        law = linearise(GaussianPath(BlockwiseMean(backbone, grid), covariance), backbone, batch)
        expected = backbone.logits(batch).topk(10).indices
    assert torch.equal(law.top, expected)
    drawn = law.sample(0.5, 0.5, 0.0, moment_draws(30, 0))
    moved = (drawn.std(0) > 1e-9).sum(1)
    assert torch.all(moved == 10)


def test_noise_common_to_all_logits_changes_nothing():
    backbone, batch = ALL["vit"]()
    head = torch.nn.Linear(16, 30)
    with torch.no_grad():
        head.weight.copy_(3 * torch.randn(16).expand(30, 16))
    backbone = Backbone(backbone.module, readout=head).probe(batch)
    grid = time_grid(4, 4)
    with backbone.frozen(), torch.no_grad():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        law = linearise(GaussianPath(BlockwiseMean(backbone, grid), covariance), backbone, batch)
    drawn = law.sample(1.0, 1.0, 0.0, moment_draws(30, 0))
    expected = torch.softmax(law.logits, -1).expand(len(drawn), -1, -1)
    torch.testing.assert_close(torch.softmax(drawn, -1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_moments_give_the_probabilities_of_4096_paths(name):
    backbone, batch = ALL[name](64)
    scales = NoiseScales(0.3, 0.1, 0.1)
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    with backbone.frozen(), torch.no_grad():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 4, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone, grid), covariance.replace(scales))
        drawn = propagate(path, backbone, batch, PathNoise.of(path, 4096, seed=0)).outcome
        mean = propagate(path, backbone, batch)
        law = linearise(path, backbone, batch)
    sharpness = 3 / law.logits.std()  # so that noise moves the probabilities
    expected = torch.softmax(sharpness * drawn.double(), -1).mean(0)
    z = moment_draws(law.logits.shape[1], 0)
    exact = law.sample(scales.shared, scales.token, scales.distance, z)
    found = torch.softmax(sharpness * exact, -1).mean(0)
    plain = torch.softmax(sharpness * law.logits, -1)
    table = MomentTable.of(law, scales)
    looked_up = table.sample(mean.outcome[0], covariance.replace(scales).growth(mean.distance), z)
    looked_up = torch.softmax(sharpness * looked_up, -1).mean(0)
    errors = [float((p - expected).abs().mean()) for p in (found, looked_up, plain)]
    assert errors[0] < 0.01, errors
    assert errors[0] < 0.6 * errors[2], errors
    assert errors[1] < errors[2], errors


def test_the_table_returns_what_depends_on_the_margins_alone():
    margin = torch.linspace(-6, 6, 400).double()
    variance = 4 * torch.exp(-margin.abs())
    scales = NoiseScales(0.5, 0.0, 0.0)
    table = MomentTable.of(_linearised(margin, variance), scales)
    new = torch.tensor([-3.01, 0.02, 4.4]).double()
    logits = torch.stack([torch.zeros(3).double(), new], 1)
    growth = torch.tensor([1.0, 2.0, 1.0])
    drawn = table.sample(logits, growth, moment_draws(2, 0))
    spread = (drawn[:, :, 1] - drawn[:, :, 0]).var(0)
    expected = 0.25 * 4 * torch.exp(-new.abs()) * growth
    torch.testing.assert_close(spread, expected, rtol=0.15, atol=0)


def test_the_table_holds_covariances_without_the_growth_of_its_own_rows():
    margin = torch.linspace(-6, 6, 400).double()
    ordinary = _linearised(margin, 4 * torch.exp(-margin.abs()))
    distance = torch.linspace(-2, 2, 400).double()
    far = replace(ordinary, start=distance[:, None], distance=distance)
    scales = NoiseScales(0.5, 0.0, 0.3)
    torch.testing.assert_close(
        MomentTable.of(far, scales).covariance, MomentTable.of(ordinary, scales).covariance
    )


def test_the_table_does_not_mind_the_names_of_the_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator).double()
    root = torch.randn(50, 1, 4, 4, generator=generator).double()
    top = logits.topk(4).indices
    zeros = torch.zeros(50, 1).double()
    law = LinearisedPath(logits, top, root @ root.mT, 0 * root, zeros, zeros[:, 0])
    table, z = MomentTable.of(law, NoiseScales(1.0, 0.0, 0.0)), moment_draws(4, 0)
    order = torch.tensor([2, 0, 3, 1])
    drawn = table.sample(logits[:7], torch.ones(7), z)
    renamed = table.sample(logits[:7, order], torch.ones(7), z)
    torch.testing.assert_close(renamed, drawn[:, :, order])
