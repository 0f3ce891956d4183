"""The first-order law of the logits against paths, quadrature, and what is known of it."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from known_laws import linearised
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from tiny_backbones import ALL

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._inputs.columns import Dense
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._path.covariance import NoiseScales, fit_covariance
from sklearn_diffuq._path.distance import widening
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.linearised import (
    LinearisedPath,
    linearise,
    linearise_all,
    moment_draws,
)
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._propagation.path_noise import PathNoise
from sklearn_diffuq._propagation.propagate import propagate


def test_moments_equal_one_dimensional_quadrature():
    margin = torch.tensor([-2.0, 0.3, 4.0])
    variance = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    draws = moment_draws(2, 0)
    logits = linearised(margin, variance).sample(0.8, 0.0, 0.0, draws)
    found = torch.softmax(logits, -1).mean(0)[:, 1]
    expected = [
        quad(lambda z, m=m, v=v: expit(m + 0.8 * np.sqrt(v) * z) * norm.pdf(z), -9, 9)[0]
        for m, v in zip(margin.tolist(), variance.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_near_ties_of_two_classes_do_not_flip():
    margin = torch.tensor([-1e-6, 1e-6]).repeat(20)
    logits = linearised(margin, 9.0).sample(1.0, 0.0, 0.0, moment_draws(2, 0))
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
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid, scales)
        law = linearise(path, backbone, batch)
        end = propagate(path, backbone, batch, PathNoise.of(path, 4000, seed=0))
    logits = end.logits
    centred = (logits - logits.mean(2, keepdim=True)).detach().double()
    ordered = centred.gather(2, law.top.expand(len(logits), -1, -1))
    spread = ordered - ordered.mean(0)
    expected = torch.einsum("kni,knj->nij", spread, spread) / len(logits)
    found = law.covariance(scales.shared, scales.token, scales.distance)
    scale = expected.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(found / scale, expected / scale, atol=0.1, rtol=0)
    if scales.distance:
        torch.testing.assert_close(law.distance.float(), end.distance, atol=0.05, rtol=0)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 30])
def test_there_is_a_backward_pass_per_logit_but_one(n_classes, monkeypatch):
    backbone, batch = ALL["vit"]()
    head = torch.nn.Linear(16, n_classes)
    backbone = Backbone(backbone.module, readout=head).probe(batch)
    grid = time_grid(4, 4)
    grad, asked = torch.autograd.grad, []
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kwargs: asked.append(1) or grad(*args, **kwargs)
    )
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        law = linearise(GaussianPath(BlockwiseMean(backbone), covariance, grid), backbone, batch)
    k = min(n_classes, 10)
    assert len(asked) == (k if n_classes > k else n_classes - 1)
    assert law.shared.shape == law.token.shape == (6, 4, k, k)
    if k == n_classes:  # what moves all logits alike is left out
        assert law.shared.sum(-1).abs().max() < 1e-6 * law.shared.abs().max()


def test_all_but_one_gradient_tell_as_much_as_all_in_float64():
    backbone, batch = ALL["vit"]()
    backbone.module.double()
    batch = {"x": batch["x"].double()}
    backbone = Backbone(backbone.module).probe(batch)
    grid = time_grid(4, 2)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid)
        law = linearise(path, backbone, batch)
        h, context = backbone.embed(batch)
        nudges = []
        with torch.enable_grad():
            for interval in path.steps:
                h = path.mean(h, interval, context)
                nudges.append(torch.zeros_like(h, requires_grad=True))
                h = h + nudges[-1]
            logits = backbone.readout(h, context)
    gradients = [torch.autograd.grad(z.sum(), nudges, retain_graph=True) for z in logits.unbind(1)]
    centre = torch.eye(3, dtype=torch.float64) - 1 / 3
    for s, interval in enumerate(path.steps):
        g = torch.stack([gradient[s] for gradient in gradients], 1)
        g = torch.einsum("ab,nbtd->natd", centre, g)
        g = g.gather(1, law.top[:, :, None, None].expand_as(g))
        pushed = g.sum(2) @ covariance.factor(interval).double()
        scaled = (g * covariance.token_variance(interval).double().sqrt()).flatten(2)
        torch.testing.assert_close(law.shared[:, s], pushed @ pushed.mT, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(law.token[:, s], scaled @ scaled.mT, rtol=1e-6, atol=1e-10)


def test_only_the_largest_logits_are_followed():
    backbone, batch = ALL["vit"]()
    grid = time_grid(4, 4)
    head = torch.nn.Linear(16, 30)
    backbone = Backbone(backbone.module, readout=head).probe(batch)
    with backbone.frozen(), torch.no_grad():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        law = linearise(GaussianPath(BlockwiseMean(backbone), covariance, grid), backbone, batch)
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
        law = linearise(GaussianPath(BlockwiseMean(backbone), covariance, grid), backbone, batch)
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
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid, scales)
        drawn = propagate(path, backbone, batch, PathNoise.of(path, 4096, seed=0)).logits
        mean = propagate(path, backbone, batch)
        law = linearise(path, backbone, batch)
    sharpness = 3 / law.logits.std()  # so that noise moves the probabilities
    expected = torch.softmax(sharpness * drawn.double(), -1).mean(0)
    z = moment_draws(law.logits.shape[1], 0)
    exact = law.sample(scales.shared, scales.token, scales.distance, z)
    found = torch.softmax(sharpness * exact, -1).mean(0)
    plain = torch.softmax(sharpness * law.logits, -1)
    table = MomentTable.of(law, scales)
    growth = widening(2 * scales.distance, mean.distance)
    looked_up = table.sample(mean.logits[0], growth, z)
    looked_up = torch.softmax(sharpness * looked_up, -1).mean(0)
    errors = [float((p - expected).abs().mean()) for p in (found, looked_up, plain)]
    assert errors[0] < 0.01, errors
    assert errors[0] < 0.6 * errors[2], errors
    assert errors[1] < errors[2], errors


@pytest.mark.parametrize("name", ALL)
def test_the_law_of_all_rows_is_that_of_batches(name):
    backbone, batch = ALL[name](70)  # more than a chunk
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    inputs = EncodedInputs({key: Dense(value.numpy()) for key, value in batch.items()})
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid)
        found = linearise_all(path, backbone, inputs)
        expected = linearise(path, backbone, batch)
        with torch.no_grad():
            logits = backbone.logits(batch)
    torch.testing.assert_close(found.logits.float(), logits, atol=1e-5, rtol=1e-5)
    for field in fields(LinearisedPath):
        of_all, of_batch = getattr(found, field.name), getattr(expected, field.name)
        torch.testing.assert_close(of_all, of_batch, atol=1e-3, rtol=1e-3)
        assert not of_all.requires_grad
        some = torch.tensor([4, 0])
        assert torch.equal(getattr(found.take(some), field.name), of_all[some])


def test_scales_do_not_matter_for_the_law():
    backbone, batch = ALL["vit"]()
    grid = time_grid(4, 2)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid)
        laws = [
            linearise(path.with_scales(scales), backbone, batch)
            for scales in (NoiseScales(), NoiseScales(0.3, 0.2, 0.5))
        ]
    for field in fields(LinearisedPath):
        assert torch.equal(*(getattr(law, field.name) for law in laws))
    assert laws[0].distance.std() > 0


def test_a_perturbation_changes_the_embedding_and_sees_its_padding():
    backbone, batch = ALL["bert"]()
    grid, seen = time_grid(3, 3), []

    def perturb(h, mask):
        seen.append((h, mask))
        return h + 0.5

    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid)
        law = linearise(path, backbone, batch, perturb)
        with torch.no_grad():
            h, context = backbone.embed(batch)
            states = backbone.states(h + 0.5, context)
            logits = backbone.readout(states[-1], context)
    ((embedding, mask),) = seen
    assert torch.equal(embedding, h)
    assert torch.equal(mask, context.mask)
    torch.testing.assert_close(law.logits, logits.double(), atol=1e-5, rtol=1e-5)
    expected = [covariance.distance(states[b], b, mask) for b in range(4)]
    torch.testing.assert_close(law.start, torch.stack(expected[:3], 1).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        law.distance, torch.stack(expected[1:], 1).mean(1).double(), atol=1e-3, rtol=0
    )
