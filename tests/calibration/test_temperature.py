"""The temperature and the loss of averaged probabilities against optima that are known."""

import numpy as np
import pytest
import torch
from known_laws import NoisyMargins, labels_of

from sklearn_diffuq._calibration.temperature import (
    all_paths_nll,
    effective_size,
    fit_temperature,
    path_nll,
    path_probabilities,
)


@pytest.mark.parametrize("temperature", [0.1, 0.6, 1.0, 7.8])
@pytest.mark.parametrize("n_classes", [2, 30])
def test_temperature_is_recovered(temperature, n_classes):
    logits = 2 * torch.randn(20_000, n_classes, generator=torch.Generator().manual_seed(0))
    y = labels_of(logits)
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


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_the_loss_of_all_paths_is_estimated_from_eight(noise):
    path = NoisyMargins(100_000, noise)
    logits, exact = path.draw(8), path.exact_nll(1.0)
    eight = float(path_nll(logits, path.y, 1.0))
    assert eight > exact + 0.0005
    found = float(all_paths_nll(logits, path.y, 1.0))
    assert found == pytest.approx(exact, abs=0.5 * (eight - exact))
    weight = (torch.arange(100_000) < 500).double()
    some = all_paths_nll(logits[:, :500], path.y[:500], 1.0)
    assert float(all_paths_nll(logits, path.y, 1.0, weight)) == pytest.approx(float(some))


def test_weighted_rows_count_as_many_as_their_effective_number():
    y = torch.zeros(4)
    assert effective_size(y, None) == 4
    assert effective_size(y, torch.tensor([2.0, 2.0, 0.0, 0.0])) == pytest.approx(2)
    assert effective_size(y, torch.tensor([3.0, 1.0, 0.0, 0.0])) == pytest.approx(1.6)


def test_probabilities_are_tempered_by_one_number_or_one_of_each_row():
    logits = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.exp(logits.double() / 2) / torch.exp(logits.double() / 2).sum(2, keepdim=True)
    torch.testing.assert_close(path_probabilities(logits, 2.0), expected)
    of_rows = path_probabilities(logits, torch.full((7, 1), 2.0))
    assert of_rows.dtype == torch.float64
    assert torch.equal(of_rows, path_probabilities(logits, 2.0))
    rows = torch.linspace(0.5, 3, 7)
    each = torch.stack([path_probabilities(logits[:, i], t) for i, t in enumerate(rows)], 1)
    torch.testing.assert_close(path_probabilities(logits, rows[:, None]), each)
