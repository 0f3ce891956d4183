"""Propagation with three-line transitions whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq._inputs.batching import map_rows
from sklearn_diffuq._inputs.columns import Dense
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._path.covariance import NoiseScales, StateCovariance, fit_covariance
from sklearn_diffuq._path.gaussian import GaussianTransition, tile
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.path_noise import PathNoise
from sklearn_diffuq._propagation.propagate import (
    follow_samples,
    mean_logits,
    propagate,
    tile_batch,
)


class LinearPath:
    """h -> A h + N(0, a^2 u u^T shared + b^2 I per token): Gaussian at every step."""

    n_steps = 3

    def __init__(self, a=0.5, b=0.2):
        self.a, self.b = a, b
        self.matrix = torch.tensor([[0.9, 0.2], [-0.1, 0.8]])
        self.factor = torch.tensor([[1.0], [2.0]])

    def observe(self, h, time, context):
        return None

    def mean_distance(self, distances):
        assert distances == [None] * 4

    def __call__(self, h, step, context, distance):
        n = len(h)
        token = torch.full((n, 1, 2), self.b**2)
        return GaussianTransition(
            h @ self.matrix.T, self.factor, torch.full((n,), self.a**2), token
        )

    def covariance(self, token_shared):
        total, power = torch.zeros(2, 2), torch.eye(2)
        for _ in range(self.n_steps):
            one = self.a**2 * self.factor @ self.factor.T
            one = one if token_shared else one + self.b**2 * torch.eye(2)
            total, power = total + power @ one @ power.T, self.matrix @ power
        return total


def test_paths_have_the_closed_form_moments():
    path, k = LinearPath(), 8192
    noise = PathNoise(k, 3, 1, 2, seed=0)
    h = torch.tensor([[[1.0, -1.0], [0.5, 2.0]]])
    end = follow_samples(path, h, None, None, noise)
    final, variance = end.state, end.variance
    assert torch.equal(end.distance, torch.zeros(1))
    expected_mean = h[0] @ torch.linalg.matrix_power(path.matrix, 3).T
    torch.testing.assert_close(final.mean(0), expected_mean, atol=1e-4, rtol=0)
    x = final - expected_mean
    torch.testing.assert_close(
        x[:, 0].T @ x[:, 0] / k, path.covariance(False), atol=0.02, rtol=0.03
    )
    # between tokens only the shared part is common
    torch.testing.assert_close(x[:, 0].T @ x[:, 1] / k, path.covariance(True), atol=0.02, rtol=0.03)
    expected = path.a**2 * path.factor.square().mean() + path.b**2
    torch.testing.assert_close(variance, expected.expand(1, 3))


def _path(name, scales):
    backbone, batch = ALL[name]()
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    statistics = collect_statistics(backbone, [batch], steps_of(grid), with_moments=False)
    covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
    return backbone, batch, GaussianPath(BlockwiseMean(backbone), covariance, grid, scales)


@pytest.mark.parametrize("name", ALL)
def test_without_noise_the_path_is_the_wrapped_model(name):
    backbone, batch, path = _path(name, NoiseScales())
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
        mean = propagate(path, backbone, batch)
        noise = PathNoise.of(path, 4, seed=0)
        sampled = propagate(path, backbone, batch, noise)
        # The first step is common; batches of other sizes may differ in the last bits.
        h, context = backbone.embed(batch)
        _, tiled = backbone.embed(tile_batch(batch, 4))
        h = tile(backbone.block(0, h, context), 4)
        of_paths = backbone.readout(backbone.advance(h, tiled, 1), tiled)
    assert torch.equal(mean.logits[0], expected)
    torch.testing.assert_close(sampled.logits, expected.expand(4, -1, -1), atol=1e-5, rtol=1e-5)
    assert torch.equal(sampled.logits, of_paths.unflatten(0, (4, -1)))
    assert torch.all(sampled.variance == 0)


@pytest.mark.parametrize("name", ALL)
def test_a_row_does_not_depend_on_the_others(name):
    backbone, batch, path = _path(name, NoiseScales(0.3, 0.1, 0.5))
    noise = PathNoise.of(path, 4, seed=0)
    order = torch.tensor(np.random.default_rng(0).permutation(6))
    with backbone.frozen(), torch.no_grad():
        end = propagate(path, backbone, batch, noise)
        shuffled = {k: v[order] for k, v in batch.items()}
        other = propagate(path, backbone, shuffled, noise)
    torch.testing.assert_close(other.logits, end.logits[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.variance, end.variance[order], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(other.distance, end.distance[order], atol=1e-3, rtol=1e-3)
    assert end.logits.std(0).min() > 1e-4
    assert end.distance.std() > 0


def test_the_states_that_steps_arrive_at_count_for_the_distance():
    backbone, batch, path = _path("vit", NoiseScales(0.0, 0.0, 0.5))
    with backbone.frozen(), torch.no_grad():
        end = propagate(path, backbone, batch)
        h, context = backbone.embed(batch)
        seen = [path.covariance.distance(h, 0)]
        for block in range(4):
            h = backbone.block(block, h, context)
            seen.append(path.covariance.distance(h, block + 1))
        distance = propagate(path.with_scales(NoiseScales(distance=1.0)), backbone, batch).distance
    expected = torch.stack(seen[1:], 1).mean(1)
    torch.testing.assert_close(distance.float(), expected)
    torch.testing.assert_close(end.distance.float(), expected)


def test_noise_grows_with_the_distance_of_the_state_that_a_step_starts_from():
    backbone, batch, path = _path("vit", NoiseScales(0.3, 0.2, 0.5))
    with backbone.frozen(), torch.no_grad():
        h, context = backbone.embed(batch)
        law = path(h, 0, context, path.observe(h, 0, context))
    v = torch.exp(path.covariance.distance(h, 0))
    torch.testing.assert_close(law.shared_variance, 0.09 * v)
    expected = law.shared_variance[:, None] * law.factor.square().sum(1) + law.token_variance[:, 0]
    torch.testing.assert_close(law.mean_variance(), expected.mean(1))


def test_the_embedding_counts_for_the_distance_where_no_other_state_is_known():
    backbone, batch, path = _path("vit", NoiseScales(0.0, 0.0, 0.5))
    c = path.covariance
    known = StateCovariance(c.intervals, c.factors, c.token_variances, {0: c.distances[0]})
    path = replace(path, covariance=known)
    with backbone.frozen(), torch.no_grad():
        h, _ = backbone.embed(batch)
        end = propagate(path, backbone, batch)
    torch.testing.assert_close(end.distance.float(), path.covariance.distance(h, 0))


def _count(path, monkeypatch):
    """Return a list that gets the block and the rows of every state that is looked at."""
    seen, look = [], path.covariance.look

    def count(h, block, real):
        seen.append((block, len(h)))
        return look(h, block, real)

    monkeypatch.setattr(path.covariance, "look", count)
    return seen


@pytest.mark.parametrize(
    ("scales", "blocks"),
    [
        (NoiseScales(0.3, 0.2, 0.5), [0, 1, 2, 3, 4]),
        (NoiseScales(0.0, 0.0, 0.5), [1, 2, 3, 4]),
        (NoiseScales(0.3, 0.2, 0.0), []),
        (NoiseScales(), []),
    ],
)
def test_the_distance_of_a_state_is_measured_once(scales, blocks, monkeypatch):
    backbone, batch, path = _path("vit", scales)
    measured = _count(path, monkeypatch)
    with backbone.frozen(), torch.no_grad():
        mean = propagate(path, backbone, batch)
        assert measured == [(block, 6) for block in blocks]
        measured.clear()
        propagate(path, backbone, batch, PathNoise.of(path, 4, seed=0))
    # All paths start from one embedding.
    assert measured == [(block, 24 if block else 6) for block in blocks]
    assert torch.equal(mean.distance, torch.zeros(6)) == (not blocks)


def test_an_exponent_alone_moves_no_path():
    backbone, batch, path = _path("vit", NoiseScales(0.0, 0.0, 0.5))
    with backbone.frozen(), torch.no_grad():
        mean = propagate(path, backbone, batch)
        end = propagate(path, backbone, batch, PathNoise.of(path, 4, seed=0))
    torch.testing.assert_close(end.logits, mean.logits.expand(4, -1, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(end.distance, mean.distance.float(), atol=1e-3, rtol=0)
    assert mean.distance.std() > 0
    assert torch.all(end.variance == 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_steps", [2, None])
def test_mean_logits_are_those_of_the_mean_path(name, n_steps):
    backbone, batch, path = _path(name, NoiseScales())
    rows = EncodedInputs({key: Dense(value.numpy()) for key, value in batch.items()})
    grid = time_grid(backbone.n_blocks, n_steps or backbone.n_blocks)
    intervals = steps_of(grid)
    c = path.covariance
    path = GaussianPath(
        path.mean,
        StateCovariance(
            intervals, c.factors[: len(intervals)], c.token_variances[: len(intervals)], {}
        ),
        grid,
    )
    with backbone.frozen():
        found = mean_logits(path.mean, grid, backbone, rows)
        with torch.no_grad():
            (expected,) = map_rows(lambda b: (propagate(path, backbone, b).logits[0],), rows)
            whole = backbone.logits(batch)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_the_noise_of_the_last_step_is_no_distance():
    backbone, batch, path = _path("vit", NoiseScales())
    c = path.covariance
    covariance = StateCovariance(
        [(0, 4)], c.factors[:1], c.token_variances[:1], {4: c.distances[4], 0: c.distances[0]}
    )
    path = GaussianPath(path.mean, covariance, (0, 4), NoiseScales(3.0, 3.0, 0.5))
    with backbone.frozen(), torch.no_grad():
        mean = propagate(path, backbone, batch)
        end = propagate(path, backbone, batch, PathNoise.of(path, 4, seed=0))
    assert end.logits.std(0).min() > 1e-3
    torch.testing.assert_close(end.distance, mean.distance.float(), atol=1e-3, rtol=0)
    assert mean.distance.std() > 0
