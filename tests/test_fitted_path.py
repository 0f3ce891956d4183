"""A fitted path as a state: through real bytes and back, it is the same path."""

import json
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from tiny_backbones import ALL
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._fitted_path import FittedPath
from sklearn_diffuq._inputs.columns import Dense
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._path.attention_covariance import attention_covariance
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales, StateCovariance, fit_covariance
from sklearn_diffuq._path.distance import GaussianProcessVariance, StateDistance
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._propagation.path_noise import PathNoise
from sklearn_diffuq._propagation.propagate import propagate
from sklearn_diffuq._state import State
from sklearn_diffuq._transition.closed_form_start import shared_groups, unified_transition
from sklearn_diffuq._transition.unified_transition import UnifiedTransition

INFERENCE = ("mean", "moments", "sampling")
WIDTH, N_CLASSES = 3, 3


class _Blocks(nn.Module):
    """A model of two tokens and a few linear blocks."""

    def __init__(self, n_blocks):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(n_blocks))
        self.head = nn.Linear(WIDTH, N_CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def _backbone(n_blocks):
    torch.manual_seed(0)
    x = torch.randn(4, 2, WIDTH)
    backbone = Backbone(_Blocks(n_blocks), blocks="blocks").probe({"x": x})
    return backbone, EncodedInputs({"x": Dense(x.numpy())})


def _calibrations(n_classes=N_CLASSES):
    """Return different numbers for every kind of inference, with noise in two of them."""
    k, generator = n_classes, torch.Generator().manual_seed(0)
    margins = -torch.rand(5, k - 1, generator=generator).double().sort(1).values
    table = MomentTable(margins, 0.3 * torch.eye(k).double().repeat(5, 1, 1))
    return {
        "mean": Calibration(NO_NOISE, 1.1, 0.51),
        "moments": Calibration(NoiseScales(0.3, 0.1, 0.2), 1 / 3, 0.1 + 0.2, table),
        "sampling": Calibration(NoiseScales(1.3, 0.7, 0.3), 1.3, 0.53),
    }


def _covariance(intervals):
    generator = torch.Generator().manual_seed(1)
    distances = {
        block: StateDistance(
            GaussianProcessVariance.given(torch.randn(4, 3 * WIDTH, generator=generator)),
            torch.tensor([0.3, 0.2], dtype=torch.float64),
        )
        for block in sorted({block for interval in intervals for block in interval})
    }
    n = len(intervals)
    factors = torch.randn(n, WIDTH, 2, generator=generator)
    variances = torch.rand(n, WIDTH, generator=generator)
    return StateCovariance(intervals, factors, variances, distances)


def _transition(backbone, intervals, rank, n_shared_blocks):
    """Return an untrained transition of random numbers, grouped as a fit groups it."""
    generator = torch.Generator().manual_seed(2)
    group = shared_groups(intervals, backbone.n_blocks, n_shared_blocks)
    transition = UnifiedTransition(intervals, backbone, rank, group)
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return transition.requires_grad_(False)


def _fitted(backbone, n_steps, rank, n_shared_blocks):
    grids = {n: time_grid(backbone.n_blocks, n) for n in n_steps}
    intervals = sorted({interval for grid in grids.values() for interval in steps_of(grid)})
    path = GaussianPath(
        _transition(backbone, intervals, rank, n_shared_blocks),
        _covariance(intervals),
        grids[n_steps[0]],
    )
    calibrations = {n: _calibrations() for n in n_steps}
    return FittedPath(path, grids, calibrations, [{"epoch": 1, "rolled_out_r2": [0.1]}], 5)


def through_bytes(state):
    """Write a state as JSON text and as safetensors bytes, and read both."""
    tensors = {name: value.contiguous().clone() for name, value in state.tensors.items()}
    return State(json.loads(json.dumps(state.config)), load(save(tensors)))


def _predictions(fitted, backbone, inputs):
    return [
        fitted.calibrated(n, kind, 2).probabilities(
            backbone, inputs, lambda proba: [proba.swapaxes(0, 1)]
        )[0]
        for n in fitted.grids
        for kind in INFERENCE
    ]


@pytest.mark.parametrize(("scales", "kept"), [((0, 0, 0), 0), ((0, 0, 0.1), 1), ((0.1, 0, 0), 1)])
def test_what_distances_need_counts_where_they_are_used(scales, kept):
    backbone = ALL["vit"]()[0]
    fitted = _fitted(backbone, (4,), 2, 1)
    fitted.calibrations[4]["sampling"] = Calibration(NoiseScales(*scales), 1.0, 0.0)
    expected = sum(p.numel() for p in fitted.path.mean.parameters())
    expected += kept * sum(buffer.numel() for buffer in fitted.path.covariance.buffers())
    assert fitted.n_parameters(4, "sampling") == expected


def assert_same(loaded, fitted, backbone, inputs):
    assert loaded.grids == fitted.grids
    assert list(loaded.grids) == list(fitted.grids)
    assert loaded.path.grid == fitted.path.grid
    assert (loaded.seed, loaded.history) == (fitted.seed, fitted.history)
    for n in fitted.grids:
        for kind in INFERENCE:
            assert loaded.n_parameters(n, kind) == fitted.n_parameters(n, kind)
    expected = _predictions(fitted, backbone, inputs)
    for a, b in zip(_predictions(loaded, backbone, inputs), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def _all_step_counts(n_blocks):
    single = [(n,) for n in range(1, n_blocks + 1)]
    return single + [(b, a) for a, b in combinations(range(1, n_blocks + 1), 2)]


def _steps(transition, backbone, batch):
    """Return where each of the steps leads."""
    with backbone.frozen(), torch.no_grad():
        h, context = backbone.embed(batch)
        return torch.stack([transition(h, i, context) for i in transition.intervals])


@pytest.mark.parametrize("n_blocks", range(1, 9))
def test_every_combination_of_blocks_steps_and_shared_blocks_comes_back(n_blocks):
    backbone, inputs = _backbone(n_blocks)
    batch = inputs.batch(range(4))
    for n_steps in _all_step_counts(n_blocks):
        grids = [time_grid(n_blocks, n) for n in n_steps]
        intervals = sorted({interval for grid in grids for interval in steps_of(grid)})
        # More shared blocks than steps are as many as steps. The full rank has no groups.
        few = [(1, n) for n in range(1, n_blocks + 2)] + [(None, n_blocks)]
        for rank, n_shared in few:
            transition = _transition(backbone, intervals, rank, n_shared)
            state = through_bytes(transition.to_state())
            loaded = UnifiedTransition.from_state(state, backbone)
            assert loaded.group == transition.group, (n_steps, n_shared)
            assert (loaded.rank, loaded.intervals) == (rank, tuple(intervals))
            expected = _steps(transition, backbone, batch)
            assert torch.equal(_steps(loaded, backbone, batch), expected), (n_steps, n_shared)


def _paths(fitted, backbone, batch):
    """Return the ends of noisy paths, for every number of steps."""
    ends = []
    with backbone.frozen(), torch.no_grad():
        for n in fitted.grids:
            path = fitted.on(n).with_scales(fitted.calibrations[n]["sampling"].scales)
            end = propagate(path, backbone, batch, PathNoise.of(path, 2, fitted.seed))
            ends += [end.logits, end.variance, end.distance]
    return ends


@pytest.mark.parametrize("n_blocks", [1, 3, 5, 8])
def test_the_paths_of_many_combinations_come_back(n_blocks):
    backbone, inputs = _backbone(n_blocks)
    batch = inputs.batch(range(4))
    for n_steps in _all_step_counts(n_blocks)[:: 1 + n_blocks // 4]:
        for rank, n_shared in ((1, 1), (1, 3), (None, 1)):
            fitted = _fitted(backbone, n_steps, rank, n_shared)
            loaded = FittedPath.from_state(through_bytes(fitted.to_state()), backbone)
            assert loaded.grids == fitted.grids
            expected = _paths(fitted, backbone, batch)
            for a, b in zip(_paths(loaded, backbone, batch), expected, strict=True):
                assert torch.equal(a, b), (n_steps, rank, n_shared)


@pytest.mark.parametrize("n_steps", [(4,), (2,), (4, 1), (1, 3, 2)])
def test_every_inference_comes_back(n_steps):
    backbone, inputs = _backbone(4)
    fitted = _fitted(backbone, n_steps, 1, 2)
    loaded = FittedPath.from_state(through_bytes(fitted.to_state()), backbone)
    assert_same(loaded, fitted, backbone, inputs)
    for n in n_steps:
        for kind in INFERENCE:
            mine, other = loaded.calibrations[n][kind], fitted.calibrations[n][kind]
            assert (mine.scales, mine.temperature, mine.nll) == (
                other.scales,
                other.temperature,
                other.nll,
            )
            assert (mine.table is None) == (other.table is None)
    assert not any(p.requires_grad for p in loaded.path.mean.parameters())


@pytest.mark.parametrize("kind", ["blockwise", "unified"])
@pytest.mark.parametrize(
    ("name", "covariance"),
    [("vit", "gp"), ("bert", "gp"), ("gpt2", "gp"), ("vit", "attention"), ("bert", "attention")],
)
def test_paths_of_real_architectures_come_back(name, kind, covariance):
    backbone, batch = ALL[name]()
    inputs = EncodedInputs({k: Dense(v.numpy()) for k, v in batch.items()})
    grids = {n: time_grid(backbone.n_blocks, n) for n in (backbone.n_blocks, 2)}
    intervals = sorted({interval for grid in grids.values() for interval in steps_of(grid)})
    generator = torch.Generator().manual_seed(0)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [batch], intervals, True)
        if covariance == "gp":
            law = fit_covariance(statistics, 2, generator)
        else:
            law = attention_covariance(backbone, [batch], intervals, 2, generator)
        mean = BlockwiseMean(backbone)
        if kind == "unified":
            mean = unified_transition(backbone, intervals, 2, statistics.moments, 2)
            law = law.with_token_variances(mean.variances())
    calibrations = {n: _calibrations(backbone.n_outputs) for n in grids}
    path = GaussianPath(mean, law, next(iter(grids.values())))
    fitted = FittedPath(path, grids, calibrations, [], 0)
    loaded = FittedPath.from_state(through_bytes(fitted.to_state()), backbone)
    assert type(loaded.path.mean) is type(mean)
    assert [type(d.process) for d in loaded.path.covariance.distances] == [
        type(d.process) for d in law.distances
    ]
    assert_same(loaded, fitted, backbone, inputs)


def test_the_state_holds_nothing_of_the_wrapped_model():
    backbone, _ = _backbone(3)
    state = _fitted(backbone, (3,), 1, 1).to_state()
    parts = {tuple(name.split(".")[:2]) for name in state.tensors}
    assert {part[0] for part in parts} == {"mean", "covariance", "calibration"}
    weights = {value.data_ptr() for value in backbone.module.state_dict().values()}
    assert not weights & {value.data_ptr() for value in state.tensors.values()}


def test_another_seed_draws_other_paths():
    backbone, inputs = _backbone(3)
    fitted = _fitted(backbone, (3,), 1, 1)

    def paths(seed):
        path = fitted.calibrated(3, "sampling", 2, seed)
        return path.probabilities(backbone, inputs, lambda p: [p.swapaxes(0, 1)])[0]

    np.testing.assert_array_equal(paths(None), paths(fitted.seed))
    assert not np.array_equal(paths(None), paths(fitted.seed + 1))
    assert fitted.calibrated(3, "sampling", 2, 0).seed == 0  # zero is a seed


def test_a_number_of_steps_that_was_not_fitted_is_unknown():
    fitted = _fitted(_backbone(3)[0], (3, 1), 1, 1)
    with pytest.raises(KeyError):
        fitted.on(2)


@pytest.mark.parametrize("module", ["_predictions", "_fitted_path", "_calibration.predict"])
def test_predictions_load_no_training_code(module):
    code = f"import sys, sklearn_diffuq.{module}; print('skorch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
