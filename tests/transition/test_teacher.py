"""States that are kept against states computed again."""

import os

import numpy as np
import pytest
import torch
from tiny_backbones import vit
from tiny_objective import Rows, losses_of, objective_of

from sklearn_diffuq._transition import teacher as teacher_module
from sklearn_diffuq._transition.teacher import Teacher, kept_memory

GRIDS = [(0, 1, 2, 3, 4), (0, 2, 4), (0, 4)]


def _teacher(lengths=None):
    backbone, batch = vit()
    inputs = Rows(batch)
    inputs.lengths = lengths
    calls = []
    block = backbone.block
    backbone.block = lambda k, *args, **kwargs: calls.append(k) or block(k, *args, **kwargs)
    return Teacher(backbone, inputs, GRIDS), calls


def _ask(teacher, rows, grid=GRIDS[0]):
    with teacher.backbone.frozen():
        return teacher(np.array(rows), grid, torch.device("cpu"))


@pytest.mark.parametrize("grid", GRIDS)
def test_kept_states_and_rows_are_those_of_the_rows(grid):
    teacher, calls = _teacher()
    for rows in ([0, 3], [1, 2], [5, 4]):
        _ask(teacher, rows)
    assert calls == [0, 1, 2, 3] * 3
    batch, context, states = _ask(teacher, [4, 0, 2], grid)
    assert len(calls) == 12  # no block ran
    fresh, _ = _teacher()
    expected_batch, expected, expected_states = _ask(fresh, [4, 0, 2], grid)
    assert torch.equal(batch["x"], expected_batch["x"])
    assert context.calls == expected.calls
    assert states.shape == (len(grid), 3, 5, 16)
    torch.testing.assert_close(states, expected_states, atol=1e-5, rtol=1e-5)


def test_texts_and_what_takes_too_much_memory_are_computed_again(monkeypatch):
    for lengths, share in [(np.full(6, 5), 1.0), (None, 1e-12)]:
        monkeypatch.setattr(teacher_module, "KEPT_SHARE", {"cpu": share})
        teacher, calls = _teacher(lengths)
        first, second = (_ask(teacher, [0, 1, 2, 3, 4, 5])[2] for _ in range(2))
        assert torch.equal(first, second)
        assert len(calls) == 8


def test_rows_of_another_shape_are_not_kept():
    teacher, calls = _teacher()
    _ask(teacher, [0, 1])
    states = teacher._states
    teacher._states = states[:, :, :4]  # as if rows before had fewer tokens
    _ask(teacher, [2, 3])
    _ask(teacher, [2, 3])
    assert len(calls) == 12


def test_the_share_is_of_the_memory():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.01 * physical < kept_memory(torch.device("cpu")) < 0.2 * physical
    assert kept_memory(torch.device("meta")) == 0


@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_a_second_epoch_has_the_losses_of_the_first(epoch):
    objective = objective_of("vit", counts=(4,))
    losses = [losses_of(objective, epoch) for _ in range(2)]
    assert objective.teacher._known[:4].all()
    for name, value in losses[0].items():
        assert torch.equal(losses[1][name], value)
