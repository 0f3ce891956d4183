"""Distances of states to the training states against dense float64 answers."""

import json

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from sklearn_diffuq._backbones.context import RealTokens
from sklearn_diffuq._path.distance import (
    GaussianProcessVariance,
    StateDistance,
    describe,
    standardisation,
    widening,
)
from sklearn_diffuq._state import State


def _states(n=60, p=4, seed=0):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed))


def _rho(process, h):
    return process.variances([process], [process.look(h, None)])[:, 0]


def test_posterior_variance_equals_scikit_learn():
    z, x = _states(), _states(20, seed=1) * 3
    process = GaussianProcessVariance.given(z, noise=0.1)
    kernel = Matern(length_scale=float(process.length), nu=0.5)
    reference = GaussianProcessRegressor(kernel, alpha=0.1, optimizer=None).fit(
        z.numpy(), torch.zeros(len(z)).numpy()
    )
    _, std = reference.predict(x.numpy(), return_std=True)
    torch.testing.assert_close(process.rho(x), torch.as_tensor(std**2), atol=1e-4, rtol=1e-4)


def test_posterior_variance_grows_away_from_the_data():
    process = GaussianProcessVariance.given(_states())
    direction = torch.nn.functional.normalize(torch.ones(1, 4))
    rho = process.rho(torch.linspace(2, 12, 6)[:, None] * direction)
    assert torch.all(rho.diff() > 0)
    assert rho[-1] > 0.99
    assert process.rho(_states()[:5]).max() < rho[5]


def test_the_length_scale_is_the_median_distance_to_a_neighbour():
    z = _states().double()
    ordered = torch.cdist(z, z).sort(1).values
    for neighbour in (3, 10):
        length = GaussianProcessVariance.given(z, neighbour).length
        assert float(length) == pytest.approx(float(ordered[:, neighbour].median()))
    few = GaussianProcessVariance.given(z[:3], 10).length
    assert float(few) == pytest.approx(float(torch.cdist(z[:3], z[:3]).amax(1).median()))


def test_a_process_is_built_again_from_json_and_tensors():
    process, x = GaussianProcessVariance.given(_states()), _states(20, seed=1)
    state = process.to_state()
    again = GaussianProcessVariance.from_state(
        State(json.loads(json.dumps(state.config)), state.tensors)
    )
    assert torch.equal(again.rho(x), process.rho(x))
    h = _states(20 * 6, 5).unflatten(0, (20, 6))
    wide, wide_state = GaussianProcessVariance.given(describe(h)), h + 0.1
    again = GaussianProcessVariance.from_state(wide.to_state())
    assert torch.equal(_rho(again, wide_state), _rho(wide, wide_state))


def test_processes_judge_together_as_alone():
    h = torch.randn(3, 20, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.randint(
        1, 7, (20, 1), generator=torch.Generator().manual_seed(1)
    )
    processes = [GaussianProcessVariance.given(describe(states, mask)) for states in h]
    looks = [p.look(x + 0.3, RealTokens.of(mask)) for p, x in zip(processes, h, strict=True)]
    together = GaussianProcessVariance.variances(processes, looks)
    for process, states, found in zip(processes, h, together.T, strict=True):
        torch.testing.assert_close(found, process.rho(describe(states + 0.3, mask)))
        x, z = describe(states + 0.3, mask).double(), process.states
        kernel = torch.exp(-torch.cdist(z, z) / process.length) + 0.1 * torch.eye(20)
        k = torch.exp(-torch.cdist(x, z) / process.length)
        expected = 1 - (k * torch.linalg.solve(kernel, k.T).T).sum(1)
        torch.testing.assert_close(found, expected.clamp(0, 1), atol=1e-8, rtol=1e-6)


def test_description_ignores_what_padding_holds():
    h = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4 + [False] * 2] * 3)
    broken = h.clone()
    broken[:, 4:] = torch.nan
    assert torch.equal(describe(broken, mask), describe(h, mask))


def test_description_ignores_padding():
    h = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4 + [False] * 2] * 3)
    torch.testing.assert_close(describe(h, mask), describe(h[:, :4]), atol=1e-6, rtol=1e-5)


def test_description_is_first_token_mean_and_deviation_each_of_unit_length():
    h = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    parts = describe(h).unflatten(1, (3, 5))
    expected = torch.stack([h[:, 0], h.mean(1), h.std(1, correction=0)], 1)
    expected = expected / expected.norm(dim=2, keepdim=True)
    torch.testing.assert_close(parts, expected)


def test_distance_is_standardised_rho_on_a_grid_and_bounded():
    h = torch.randn(40, 6, 5, generator=torch.Generator().manual_seed(0))
    process = GaussianProcessVariance.given(describe(h[:20]))
    rho = _rho(process, h)
    ordinary = standardisation(rho[20:])
    torch.testing.assert_close(ordinary, torch.stack([rho[20:].mean(), rho[20:].std(correction=0)]))
    found = StateDistance(process, ordinary)(h)
    assert found.dtype == h.dtype
    expected = (rho - rho[20:].mean()) / rho[20:].std(correction=0)
    torch.testing.assert_close(found.double(), expected.clamp(-8, 8), atol=1 / 4096, rtol=0)
    assert torch.equal(found * 4096, torch.round(found * 4096))
    beyond = torch.linspace(0, 20, 40)
    farther = StateDistance(process, ordinary)(h, None, beyond)
    shifted = (expected + beyond).clamp(-8, 8)
    torch.testing.assert_close(farther.double(), shifted, atol=1 / 4096, rtol=0)
    narrow = StateDistance(process, torch.tensor([0.0, 1e-3], dtype=torch.float64))
    assert torch.equal(narrow(h), torch.full((40,), 8.0))


def test_states_that_are_all_alike_have_a_finite_distance():
    ordinary = standardisation(torch.full((9,), 0.25).double())
    torch.testing.assert_close(ordinary, torch.tensor([0.25, 1e-3]).double())


def test_widening_is_one_at_an_ordinary_distance_and_doubles_for_a_variance():
    distance = torch.tensor([-1.0, 0.0, 2.0])
    expected = torch.tensor([-0.3, 0.0, 0.6]).exp()
    torch.testing.assert_close(widening(0.3, distance), expected)
    torch.testing.assert_close(widening(2 * 0.3, distance), expected.square())
    assert torch.equal(widening(0.0, distance), torch.ones(3))
    exponent = torch.tensor(0.3, requires_grad=True)
    (gradient,) = torch.autograd.grad(widening(exponent, distance).sum(), exponent)
    torch.testing.assert_close(gradient, (distance * expected).sum())
