"""The unified transition: closed-form start against independent answers."""

import pickle

import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.propagate import propagate
from sklearn_diffuq._transition.closed_form_start import factorise, unified_transition


def _start(backbone, batch, n_steps, rank, **kwargs):
    steps = steps_of(time_grid(backbone.n_blocks, n_steps))
    statistics = collect_statistics(backbone, [batch], steps, with_moments=True)
    return unified_transition(backbone, steps, rank, statistics.moments, **kwargs)


def _logits(backbone, transition, batch):
    with backbone.frozen(), torch.no_grad():
        return propagate(GaussianPath(transition), backbone, batch).outcome[0]


@pytest.mark.parametrize("name", ALL)
def test_full_rank_with_one_step_per_block_is_the_backbone(name):
    backbone, batch = ALL[name]()
    transition = _start(backbone, batch, backbone.n_blocks, None)
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
    assert torch.equal(_logits(backbone, transition, batch), expected)
    n_blocks = sum(p.numel() for b in backbone.blocks for p in b.parameters())
    assert transition.n_parameters - transition.log_variance.numel() == n_blocks


@pytest.mark.parametrize("name", ALL)
def test_low_rank_of_full_width_reproduces_the_backbone(name):
    backbone, batch = ALL[name]()
    transition = _start(backbone, batch, backbone.n_blocks, 16, n_alternations=2)
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
    torch.testing.assert_close(_logits(backbone, transition, batch), expected, atol=1e-4, rtol=1e-4)


def test_fidelity_grows_with_rank():
    backbone, batch = ALL["vit"](32)
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
    errors = [
        float((_logits(backbone, _start(backbone, batch, 4, r), batch) - expected).square().mean())
        for r in (1, 8, 14)
    ]
    assert errors[0] > errors[1] > 4 * errors[2]


def _weighted_error(target, metric, group, shared, up, down):
    fitted = shared.double()[group] + up.double() @ down.double()
    weight = 1 / torch.einsum("soi,sij,soj->s", target, metric, target)
    error = target - fitted
    return float((weight * torch.einsum("soi,sij,soj->s", error, metric, error)).sum())


@pytest.mark.parametrize("shape", [(3, 5, 8), (3, 8, 5)])
def test_factorisation_is_a_local_optimum_that_gradients_cannot_improve(shape):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(shape, generator=generator, dtype=torch.float64)
    root = torch.randn(3, shape[2], shape[2], generator=generator, dtype=torch.float64)
    metric = root @ root.mT
    group = [0, 0, 0]
    factors = factorise(target, metric, group, rank=1, n_alternations=300)
    found = _weighted_error(target, metric, group, *factors)
    free = [f.double().requires_grad_() for f in factors]
    optimiser = torch.optim.LBFGS(free, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        fitted = free[0][group] + free[1] @ free[2]
        weight = 1 / torch.einsum("soi,sij,soj->s", target, metric, target)
        error = target - fitted
        loss = (weight * torch.einsum("soi,sij,soj->s", error, metric, error)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert found <= 1.02 * float(closure().detach())


def test_metric_of_the_inputs_beats_plain_singular_values():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 6, 6, generator=generator)
    scale = torch.diag(torch.tensor([10.0, 5, 1, 0.1, 0.1, 0.1]))
    metric = torch.stack([scale, scale])
    aware = factorise(target, metric, [0, 0], 1)
    plain = factorise(target, torch.eye(6).expand(2, 6, 6), [0, 0], 1)
    args = (target.double(), metric.double(), [0, 0])
    assert _weighted_error(*args, *aware) < 0.9 * _weighted_error(*args, *plain)


def test_groups_share_consecutive_steps():
    backbone, batch = ALL["vit"]()
    transition = _start(backbone, batch, 4, 1, n_shared_blocks=2)
    assert transition.group == [0, 0, 1, 1]
    assert {len(p) for p in transition.shared.values()} == {2}


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter_of_the_mean(name):
    backbone, batch = ALL[name]()
    transition = _start(backbone, batch, 2, 2)
    with backbone.frozen():
        propagate(GaussianPath(transition), backbone, batch).outcome.square().sum().backward()
        assert all(p.grad is None for p in backbone.module.parameters())
    for key, parameter in transition.named_parameters():
        # A key bias shifts all attention scores of a query alike: softmax removes it.
        if key != "log_variance" and "key/bias" not in key:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key


def test_pickle_keeps_the_result():
    backbone, batch = ALL["bert"]()
    transition = _start(backbone, batch, 3, 2)
    expected = _logits(backbone, transition, batch)
    copy = pickle.loads(pickle.dumps(transition))
    assert torch.equal(_logits(backbone, copy, batch), expected)


def test_bias_takes_up_the_mean_error():
    backbone, batch = ALL["vit"](64)
    transition = _start(backbone, batch, 4, 1)
    moments = collect_statistics(backbone, [batch], steps_of(time_grid(4, 4)), True).moments
    for step in range(4):
        x = moments.mean[step, "mlp.fc1.weight"]
        block = backbone.blocks[step].mlp.fc1
        expected = block.weight @ x + block.bias
        weight = transition.matrix("mlp/fc1/weight", step)
        found = weight @ x + transition.vectors["mlp/fc1/bias"][step]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_grids_share_the_network_and_keep_their_own_steps():
    backbone, batch = ALL["vit"]()
    grids = [time_grid(4, n) for n in (4, 2, 1)]
    steps = sorted({step for grid in grids for step in steps_of(grid)})
    moments = collect_statistics(backbone, [batch], steps, True).moments
    transition = unified_transition(backbone, steps, 2, moments)
    views = [transition.on(grid) for grid in grids]
    assert [v.n_steps for v in views] == [4, 2, 1]
    assert [v.grid for v in views] == grids
    assert all(a is b for v in views for a, b in zip(v.parameters(), transition.parameters()))
    alone = {n: unified_transition(backbone, steps_of(time_grid(4, n)), 2, moments) for n in (4, 2)}
    for view in views[:2]:
        assert view.n_parameters == alone[view.n_steps].n_parameters
    assert not torch.equal(*(_logits(backbone, v, batch) for v in views[:2]))
    views[1].vectors["norm1/bias"].data[transition.intervals.index((0, 2))] += 1
    torch.testing.assert_close(transition.vectors["norm1/bias"], views[0].vectors["norm1/bias"])
