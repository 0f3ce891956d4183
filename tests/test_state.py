"""States inside states."""

import json

import torch

from sklearn_diffuq._state import State


def test_a_part_comes_out_as_it_went_in():
    x, y, z = torch.zeros(1), torch.ones(2), torch.ones(3)
    inner = State({"b": [1, 2]}, {"x": x})
    outer = State({"a": 1}, {"y": y}).with_parts(part=inner, parts=State({}, {"x": z}))
    assert outer.part("part") == inner
    assert outer.part("parts") == State({}, {"x": z})
    nested = State({}).with_parts(outer=outer).part("outer")
    assert nested.part("part") == inner
    assert nested.config["a"] == 1
    assert nested.tensors["y"] is y
    assert json.loads(json.dumps(outer.config)) == outer.config


def test_parts_leave_the_state_alone():
    state = State({"a": 1}, {"y": torch.ones(2)})
    state.with_parts(part=State({"b": 2}, {"x": torch.zeros(1)}))
    assert state.config == {"a": 1}
    assert list(state.tensors) == ["y"]


def test_a_part_that_was_never_there_is_empty():
    assert State({"a": 1}, {"y": torch.ones(2)}).part("part") == State({})
    only_tensors = State({}, {"part.x": torch.ones(1)}).part("part")
    assert only_tensors.config == {}
    assert list(only_tensors.tensors) == ["x"]
