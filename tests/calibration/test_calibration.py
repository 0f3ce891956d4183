"""What is known of one kind of inference, and how it is kept."""

import json
from copy import deepcopy

import pytest
import torch
from known_laws import linearised

from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales
from sklearn_diffuq._propagation.linearised import moment_draws
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._state import State

SCALES = NoiseScales(0.1 + 0.2, 1 / 3, 2 / 7)  # numbers that text must not round


def _again(calibration):
    state = calibration.to_state()
    tensors = deepcopy(state.tensors)
    return Calibration.from_state(State(json.loads(json.dumps(state.config)), tensors))


@pytest.mark.parametrize("scales", [NO_NOISE, NoiseScales(distance=1 / 3), SCALES])
def test_a_calibration_without_a_table_is_built_again(scales):
    calibration = Calibration(scales, 1.1 * 1.1, 2 / 3)
    assert _again(calibration) == calibration
    assert not calibration.to_state().tensors


def test_a_calibration_with_a_table_is_built_again():
    margin = torch.linspace(-6, 6, 40).double()
    table = MomentTable.of(linearised(margin, 4 * torch.exp(-margin.abs())), SCALES)
    calibration = Calibration(SCALES, 1.1 * 1.1, 2 / 3, table)
    again = _again(calibration)
    assert (again.scales, again.temperature, again.nll) == (SCALES, 1.1 * 1.1, 2 / 3)
    logits, growth, z = torch.randn(9, 2), torch.linspace(0.5, 2, 9), moment_draws(2, 0)
    assert torch.equal(again.table.sample(logits, growth, z), table.sample(logits, growth, z))
    distance = torch.randn(9)
    assert torch.equal(again.temperature_at(distance), calibration.temperature_at(distance))


def test_several_calibrations_are_kept_in_one_state():
    margin = torch.linspace(-2, 2, 20)
    table = MomentTable.of(linearised(margin, torch.ones(20).double()), SCALES)
    noisy, constant = Calibration(SCALES, 1.5, 0.5, table), Calibration(NO_NOISE, 1.2, 0.6)
    state = State({}).with_parts(moments=noisy.to_state(), mean=constant.to_state())
    assert Calibration.from_state(state.part("mean")) == constant
    again = Calibration.from_state(state.part("moments"))
    assert torch.equal(again.table.covariance, table.covariance)
    assert torch.equal(again.table.margins, table.margins)


def test_the_temperature_grows_with_the_distance():
    calibration = Calibration(NoiseScales(distance=0.4), 1.5, 0.0)
    found = calibration.temperature_at(torch.tensor([-1.0, 0.0, 2.0]))
    assert found.dtype == torch.float64
    expected = 1.5 * torch.tensor([[-0.4], [0.0], [0.8]]).double().exp()
    torch.testing.assert_close(found, expected)
    constant = Calibration(NO_NOISE, 1.5, 0.0).temperature_at(torch.tensor([-1.0, 2.0]))
    assert torch.equal(constant, torch.full((2, 1), 1.5).double())


@pytest.mark.parametrize(
    ("scales", "noise"),
    [
        (NO_NOISE, False),
        (NoiseScales(distance=1.0), False),
        (NoiseScales(shared=0.1), True),
        (NoiseScales(token=0.1), True),
    ],
)
def test_an_exponent_alone_is_no_noise(scales, noise):
    assert Calibration(scales, 1.0, 0.0).has_noise == scales.any_noise == noise
