"""The covariance of the path against dense float64 answers."""

import json
from copy import deepcopy

import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq._path.attention_covariance import AttentionVariance, attention_covariance
from sklearn_diffuq._path.covariance import StateCovariance, fit_covariance
from sklearn_diffuq._path.distance import GaussianProcessVariance, StateDistance
from sklearn_diffuq._path.statistics import PathStatistics
from sklearn_diffuq._state import State


def _statistics(n=80, steps=2, d=3):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(steps, d, d, generator=generator)
    states = {b: torch.randn(n, 3 * d, generator=generator) for b in range(steps + 1)}
    intervals = tuple((s, s + 1) for s in range(steps))
    variance = torch.rand(steps, d, generator=generator)
    return PathStatistics(intervals, variance, a @ a.mT, states, None, None)


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


def test_other_channel_variances_leave_the_original_alone_and_share_the_rest():
    covariance = fit_covariance(_statistics(), 2, torch.Generator().manual_seed(0))
    before = covariance.token_variances.clone()
    other = covariance.with_token_variances(torch.zeros_like(before))
    assert isinstance(other, StateCovariance)
    assert torch.equal(other.token_variances, torch.zeros_like(before))
    assert torch.equal(covariance.token_variances, before)
    assert other.intervals == covariance.intervals
    assert other.factors is covariance.factors
    assert list(other.distances) == list(covariance.distances)
    assert other.blocks == covariance.blocks == (0, 1, 2)


def test_a_step_that_is_not_known_is_an_error():
    covariance = fit_covariance(_statistics(), 2, torch.Generator().manual_seed(0))
    for known in (covariance.factor, covariance.token_variance):
        assert len(known((1, 2))) == 3
        with pytest.raises(ValueError, match="not in tuple"):
            known((0, 2))


def test_the_other_half_of_the_states_is_ordinary():
    statistics = _statistics()
    covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    for block, distance in zip(covariance.blocks, covariance.distances, strict=True):
        states = statistics.states[block].double()
        assert torch.equal(distance.process.states, states[order[:40]])
        rho = distance.process.rho(states[order[40:]])
        torch.testing.assert_close(
            distance.ordinary, torch.stack([rho.mean(), rho.std(correction=0)])
        )


def _covariances():
    """Return a covariance of each kind of process, and states with padding for it."""
    generator = torch.Generator().manual_seed(0)
    yield fit_covariance(_statistics(), 2, generator), torch.randn(7, 4, 3), None
    for name in ("vit", "bert"):
        backbone, batch = ALL[name](20)
        steps = tuple((k, k + 1) for k in range(backbone.n_blocks))
        with backbone.frozen(), torch.no_grad():
            h, context = backbone.embed(batch)
            found = attention_covariance(backbone, [batch], steps, 3, generator)
        yield found, h, context.mask


@pytest.mark.parametrize("index", range(3), ids=["states", "attention of vit", "of bert"])
def test_a_covariance_is_built_again_from_json_and_tensors(index):
    covariance, h, mask = list(_covariances())[index]
    state = covariance.to_state()
    kinds = {kind.kind: kind.from_state for kind in (GaussianProcessVariance, AttentionVariance)}
    again = StateCovariance.from_state(
        State(json.loads(json.dumps(state.config)), deepcopy(state.tensors)),
        kinds[state.config["process"]],
    )
    assert again.intervals == covariance.intervals
    assert again.blocks == covariance.blocks
    for interval in covariance.intervals:
        assert torch.equal(again.factor(interval), covariance.factor(interval))
        assert torch.equal(again.token_variance(interval), covariance.token_variance(interval))
    for block in covariance.blocks:
        found, expected = (c.distance(h, block, mask) for c in (again, covariance))
        assert torch.equal(found, expected)
        assert len(torch.unique(expected)) > 1
    assert all(type(a) is type(b) for a, b in zip(again.modules(), covariance.modules()))
    assert state.tensors.keys() == again.to_state().tensors.keys()


def test_the_distance_before_a_block_is_that_of_its_own_process():
    covariance, h, _ = next(_covariances())
    for block, distance in zip(covariance.blocks, covariance.distances, strict=True):
        assert isinstance(distance, StateDistance)
        assert torch.equal(covariance.distance(h, block), distance(h))
    assert not torch.equal(covariance.distance(h, 0), covariance.distance(h, 1))


def test_no_directions_are_no_shared_noise():
    covariance = fit_covariance(_statistics(), 0, torch.Generator().manual_seed(0))
    assert covariance.factor((0, 1)).shape == (3, 0)


def test_states_of_one_token_have_a_distance_without_a_gradient():
    """Their standard deviation is zero, where a square root has no derivative."""
    covariance = fit_covariance(_statistics(), 2, torch.Generator().manual_seed(0))
    h = torch.randn(4, 1, 3, requires_grad=True)
    distance = covariance.distance(h, 1)
    assert torch.isfinite(distance).all()
    assert not distance.requires_grad
