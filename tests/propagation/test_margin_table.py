"""The table of covariances: what a new row finds by its margins."""

import json
from copy import deepcopy
from dataclasses import replace

import torch
from known_laws import linearised

from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._propagation.linearised import LinearisedPath, moment_draws
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._state import State


def test_the_table_returns_what_depends_on_the_margins_alone():
    margin = torch.linspace(-6, 6, 400).double()
    variance = 4 * torch.exp(-margin.abs())
    scales = NoiseScales(0.5, 0.0, 0.0)
    table = MomentTable.of(linearised(margin, variance), scales)
    new = torch.tensor([-3.01, 0.02, 4.4]).double()
    logits = torch.stack([torch.zeros(3).double(), new], 1)
    growth = torch.tensor([1.0, 2.0, 1.0])
    drawn = table.sample(logits, growth, moment_draws(2, 0))
    spread = (drawn[:, :, 1] - drawn[:, :, 0]).var(0)
    expected = 0.25 * 4 * torch.exp(-new.abs()) * growth
    torch.testing.assert_close(spread, expected, rtol=0.15, atol=0)


def test_the_table_holds_covariances_without_the_growth_of_its_own_rows():
    margin = torch.linspace(-6, 6, 400).double()
    ordinary = linearised(margin, 4 * torch.exp(-margin.abs()))
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


def test_a_table_is_built_again_from_json_and_tensors():
    margin = torch.linspace(-6, 6, 40).double()
    law = linearised(margin, 4 * torch.exp(-margin.abs()))
    table = MomentTable.of(law, NoiseScales(0.5, 0.0, 0.3))
    state = table.to_state()
    again = MomentTable.from_state(
        State(json.loads(json.dumps(state.config)), deepcopy(state.tensors))
    )
    logits, z = torch.randn(9, 2), moment_draws(2, 0)
    growth = torch.linspace(0.5, 2, 9)
    assert torch.equal(again.sample(logits, growth, z), table.sample(logits, growth, z))


def test_a_row_finds_the_same_in_any_company():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator).double()
    root = torch.randn(50, 1, 4, 4, generator=generator).double()
    zeros = torch.zeros(50, 1).double()
    law = LinearisedPath(
        logits, logits.topk(4).indices, root @ root.mT, 0 * root, zeros, zeros[:, 0]
    )
    table, z = MomentTable.of(law, NoiseScales(1.0, 0.0, 0.0)), moment_draws(4, 0)
    new = torch.randn(33, 4, generator=generator)
    together = table.sample(new, torch.ones(33), z)
    for row in range(33):
        assert torch.equal(table.sample(new[[row]], torch.ones(1), z)[:, 0], together[:, row])


def test_fewer_rows_than_neighbours_are_all_looked_at():
    margin = torch.tensor([-1.0, 0.5, 2.0])
    table = MomentTable.of(linearised(margin, torch.ones(3).double()), NoiseScales(1.0))
    drawn = table.sample(torch.tensor([[0.0, 1.0]]), torch.ones(1), moment_draws(2, 0))
    spread = (drawn[:, 0, 1] - drawn[:, 0, 0] - 1).square().mean()
    torch.testing.assert_close(spread, torch.tensor(1.0).double(), atol=0.05, rtol=0)
