"""The one pass over the data, against sums over all stored states in float64."""

import numpy as np
import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq._path.distance import describe
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.statistics import collect_statistics, own_states
from sklearn_diffuq._path.time_grid import steps_of, time_grid


def _halves(batch):
    return [{k: v[:3] for k, v in batch.items()}, {k: v[3:] for k, v in batch.items()}]


@pytest.mark.parametrize("name", ALL)
def test_streamed_sums_equal_those_over_stored_states(name):
    backbone, batch = ALL[name]()
    grid = time_grid(backbone.n_blocks, 2)
    backbone.module.eval()
    statistics = collect_statistics(backbone, _halves(batch), steps_of(grid), with_moments=False)
    h, context = backbone.embed(batch)
    real = np.ones(h.shape[:2], bool) if context.mask is None else context.mask.numpy()
    for step in range(2):
        before = h
        for block in range(grid[step], grid[step + 1]):
            h = backbone.block(block, h, context)
        change = (h - before).detach().double().numpy()
        np.testing.assert_allclose(
            statistics.token_variance[step], change[real].var(0), rtol=1e-3, atol=1e-6
        )
        pooled = np.stack([c[r].mean(0) for c, r in zip(change, real, strict=True)])
        np.testing.assert_allclose(
            statistics.pooled_second_moment[step],
            np.cov(pooled.T, bias=True),
            rtol=1e-3,
            atol=1e-5,
        )
        torch.testing.assert_close(
            statistics.states[grid[step + 1]],
            describe(h, context.mask).detach(),
            atol=1e-5,
            rtol=1e-5,
        )
    assert list(statistics.states) == list(grid)


def test_a_constant_increment_has_no_negative_variance():
    backbone, _ = ALL["vit"]()
    backbone.module.blocks[1].forward = lambda h: h + torch.linspace(-3, 3, 16)
    batches = [{"x": torch.randn(7, 1, 16, 16)} for _ in range(9)]
    with backbone.frozen():
        statistics = collect_statistics(backbone, batches, steps_of(time_grid(4, 4)), False)
    variance = statistics.token_variance[1]
    assert torch.all(variance >= 0)
    assert torch.all(variance < 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_own_states_of_the_frozen_mean_are_those_of_the_model(name):
    backbone, batch = ALL[name]()
    grids = (0, backbone.n_blocks), (0, 2, backbone.n_blocks)
    with backbone.frozen():
        steps = [step for grid in grids for step in steps_of(grid)]
        expected = collect_statistics(backbone, _halves(batch), steps, with_moments=False).states
        found = own_states(BlockwiseMean(backbone), backbone, iter(_halves(batch)), grids)
    assert set(found) == set(expected) == {0, 2, backbone.n_blocks}
    for block, states in found.items():
        assert torch.equal(states, expected[block])


def test_each_batch_is_embedded_once_whatever_the_number_of_grids(monkeypatch):
    backbone, batch = ALL["vit"]()
    embed, n_embedded = backbone.embed, []
    monkeypatch.setattr(backbone, "embed", lambda b: n_embedded.append(len(b["x"])) or embed(b))
    with backbone.frozen():
        own_states(
            BlockwiseMean(backbone), backbone, _halves(batch), [(0, 2, 4), (0, 4), (0, 1, 4)]
        )
    assert n_embedded == [3, 3]


def test_where_grids_meet_the_states_of_the_first_count():
    backbone, batch = ALL["vit"]()

    class Jump:
        """A mean that adds one in each step, however long."""

        def __call__(self, h, interval, context):
            return h + torch.arange(16)

    with backbone.frozen():
        h, _ = backbone.embed(batch)
        found = own_states(Jump(), backbone, [batch], [(0, 2, 4), (0, 1, 2, 3, 4)])
    jumps = {0: 0, 1: 1, 2: 1, 3: 3, 4: 2}
    assert set(found) == set(jumps)
    for block, n in jumps.items():
        expected = h
        for _ in range(n):
            expected = expected + torch.arange(16)
        assert torch.equal(found[block], describe(expected))
