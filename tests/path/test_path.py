"""The path with a mean and states whose law is known."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq._backbones.context import Context
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales, StateCovariance, fit_covariance
from sklearn_diffuq._path.distance import widening
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import PathStatistics

CONTEXT = Context({}, None, (), ())
NOISE = NoiseScales(0.5, 0.2, 0.0)
DISTANCE = NoiseScales(0.0, 0.0, 0.7)


class Shift:
    """A mean that adds the number of blocks of a step."""

    def __call__(self, h, interval, context):
        start, stop = interval
        return h + (stop - start)


def _path(scales=NO_NOISE, grid=(0, 1, 2, 3), n=80, d=3):
    generator = torch.Generator().manual_seed(0)
    intervals = ((0, 1), (1, 2), (2, 3), (0, 2))
    a = torch.randn(4, d, d, generator=generator)
    states = {b: torch.randn(n, 3 * d, generator=generator) for b in range(4)}
    variance = torch.rand(4, d, generator=generator)
    statistics = PathStatistics(intervals, variance, a @ a.mT, states, None, None)
    return GaussianPath(Shift(), fit_covariance(statistics, 2, generator), grid, scales)


def _knowing(path, *blocks):
    """Return the path with the distances before some blocks only."""
    c = path.covariance
    distances = {b: d for b, d in zip(c.blocks, c.distances, strict=True) if b in blocks}
    return replace(
        path, covariance=StateCovariance(c.intervals, c.factors, c.token_variances, distances)
    )


def _states(seed=1):
    return torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scales", [NOISE, NoiseScales(0.5, 0.2, 0.7)])
def test_scales_multiply_the_variances(scales):
    path = _path()
    noisy, h = path.with_scales(scales), _states()
    distance = path.covariance.distance(h, 1)
    v = torch.exp(2 * scales.distance * distance)
    law = noisy(h, 1, CONTEXT, noisy.observe(h, 1, CONTEXT))
    torch.testing.assert_close(widening(2 * scales.distance, distance), v)
    torch.testing.assert_close(law.shared_variance, 0.25 * v)
    expected = 0.04 * v[:, None, None] * path.covariance.token_variances[1]
    torch.testing.assert_close(law.token_variance, expected)
    assert torch.equal(law.factor, path.covariance.factors[1])
    assert torch.equal(law.mean, h + 1)
    assert isinstance(noisy.covariance, StateCovariance)
    assert path.scales == NoiseScales()


def test_the_law_takes_the_distance_that_it_is_given():
    path, h = _path(NoiseScales(0.5, 0.2, 0.7)), _states()
    law = path(h, 2, CONTEXT, torch.arange(7.0))
    torch.testing.assert_close(law.shared_variance, 0.25 * torch.exp(1.4 * torch.arange(7.0)))
    assert torch.equal(path(h, 2, CONTEXT, None).shared_variance, torch.full((7,), 0.25))


def test_the_law_knows_the_padding_of_its_context():
    mask = torch.arange(4) < torch.tensor([[2], [4], [4], [4], [4], [4], [3]])
    law = _path(NOISE)(_states(), 0, replace(CONTEXT, mask=mask), None)
    assert law.mask is mask


def test_a_time_grid_takes_its_steps_and_shares_the_rest():
    path, h = _path(NOISE), _states()
    late = path.on((1, 2, 3))
    assert torch.equal(late(h, 0, CONTEXT, None).factor, path.covariance.factor((1, 2)))
    token = late(h, 1, CONTEXT, None).token_variance[0, 0]
    torch.testing.assert_close(token, 0.04 * path.covariance.token_variance((2, 3)))
    assert late.covariance is path.covariance
    assert late.mean is path.mean
    assert late.scales == NOISE
    assert (late.n_steps, late.steps) == (2, ((1, 2), (2, 3)))
    coarse = path.on((0, 2, 3))
    assert torch.equal(coarse(h, 0, CONTEXT, None).mean, h + 2)
    assert torch.equal(coarse(h, 0, CONTEXT, None).factor, path.covariance.factors[3])
    assert torch.equal(coarse.distance(h, 1, CONTEXT), path.covariance.distance(h, 2))


def test_a_path_is_never_changed():
    path = _path()
    with pytest.raises(FrozenInstanceError):
        path.scales = NOISE
    assert path.with_scales(NOISE).with_scales(NO_NOISE) == path


@pytest.mark.parametrize(
    ("blocks", "times"),
    [((0, 1, 2, 3), [1, 2, 3]), ((0, 2), [2]), ((0,), [0]), ((), []), ((1, 3), [3])],
)
def test_the_first_known_time_counts_where_it_is_the_only_one(blocks, times):
    assert _knowing(_path(), *blocks).scored_times == times


def test_scored_times_are_those_of_the_grid():
    path = _path().on((0, 2, 3))
    assert path.scored_times == [1, 2]
    assert _knowing(path, 0, 1, 3).scored_times == [2]


@pytest.mark.parametrize("scales", [NO_NOISE, NOISE])
def test_nothing_is_observed_without_an_exponent(scales, monkeypatch):
    path, calls = _path(scales), []
    monkeypatch.setattr(StateCovariance, "distance", lambda *args: calls.append(args))
    assert [path.observe(_states(), time, CONTEXT) for time in range(4)] == [None] * 4
    assert not calls


def test_without_noise_the_embedding_is_not_observed():
    path, h = _path(DISTANCE), _states()
    assert path.observe(h, 0, CONTEXT) is None
    for time in (1, 2, 3):
        assert torch.equal(path.observe(h, time, CONTEXT), path.covariance.distance(h, time))


@pytest.mark.parametrize("scales", [NoiseScales(0.5, 0, 0.7), NoiseScales(0, 0.2, 0.7)])
def test_with_noise_the_start_of_each_step_is_observed(scales):
    path, h = _path(scales), _states()
    for time in range(4):
        assert torch.equal(path.observe(h, time, CONTEXT), path.covariance.distance(h, time))


def test_the_embedding_is_observed_where_it_alone_is_scored():
    path, h = _knowing(_path(DISTANCE), 0), _states()
    assert torch.equal(path.observe(h, 0, CONTEXT), path.covariance.distance(h, 0))
    assert [path.observe(h, time, CONTEXT) for time in (1, 2, 3)] == [None] * 3


def test_unknown_states_are_not_observed():
    path, h = _knowing(_path(NoiseScales(0.5, 0.2, 0.7)), 0, 2), _states()
    assert [path.observe(h, time, CONTEXT) is None for time in range(4)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert path.distance(h, 1, CONTEXT) is None


def test_padding_does_not_count_for_a_distance():
    path, h = _path(DISTANCE), _states()
    context = replace(CONTEXT, mask=torch.tensor([[True, True, True, False]] * 7))
    other = h.clone()
    other[:, 3] = 100.0
    expected = path.distance(h[:, :3], 1, CONTEXT)
    torch.testing.assert_close(path.distance(other, 1, context), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(path.observe(other, 1, context), expected, atol=1e-3, rtol=0)


def test_the_mean_distance_is_that_of_the_scored_times():
    path = _path()
    distances = [torch.tensor([9.0, 9.0]), torch.tensor([1.0, 2.0]), None, torch.tensor([3.0, 0.0])]
    torch.testing.assert_close(path.mean_distance(distances), torch.tensor([2.0, 1.0]))
    assert path.mean_distance([distances[0], None, None, None]) is None
    assert torch.equal(_knowing(path, 0).mean_distance(distances), distances[0])
    assert _knowing(path).mean_distance(distances) is None


@pytest.mark.parametrize("name", ALL)
def test_the_frozen_mean_is_what_the_blocks_do(name):
    backbone, batch = ALL[name]()
    mean = BlockwiseMean(backbone)
    with backbone.frozen(), torch.no_grad():
        h, context = backbone.embed(batch)
        states = backbone.states(h, context)
        assert torch.equal(mean(h, (0, 2), context), states[2])
        assert torch.equal(mean(states[1], (1, 3), context), states[3])
    n_parameters = sum(p.numel() for block in backbone.blocks for p in block.parameters())
    assert mean.n_parameters((0, 1)) == mean.n_parameters((0, 1, 2)) == n_parameters
    again = BlockwiseMean.from_state(mean.to_state(), backbone)
    assert again.backbone is backbone
