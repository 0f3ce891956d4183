"""Directories that earlier versions have written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save
from sklearn.datasets import load_iris

from sklearn_diffuq import DiffusionCalibratedClassifier
from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._fitted_path import FittedPath
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._persistence.files import CONFIG, TENSORS, read
from sklearn_diffuq._persistence.old_formats import upgrade
from sklearn_diffuq._state import State
from sklearn_diffuq._transition.closed_form_start import shared_groups

FORMAT_1 = Path(__file__).parent / "format_1"
NAMES = ("attention", "blockwise", "full_rank", "shared", "shared_uneven", "unified")


def _rows():
    """Return the rows that the directories were fitted on."""
    X, _ = load_iris(return_X_y=True)
    rows = np.sort(np.random.default_rng(0).permutation(150)[:60])
    return X[rows][:, :2]


def _state(name):
    """Return what is in a directory of format version 1."""
    directory = FORMAT_1 / name
    return State(json.loads((directory / CONFIG).read_text()), load_file(directory / TENSORS))


def _changed(state, group_count=None, **params):
    """Return a copy whose parameters, or number of shared blocks, are others."""
    config = json.loads(json.dumps(state.config))
    config["params"] |= params
    if group_count is not None:
        config["path"]["transition"]["n_shared_blocks"] = group_count
    return State(config, state.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_of_format_1_predicts_the_same(name, tmp_path):
    X, directory = _rows(), FORMAT_1 / name
    expected = np.loadtxt(directory / "predict_proba.txt")
    loaded = DiffusionCalibratedClassifier.load(directory)
    np.testing.assert_allclose(loaded.predict_proba(X[::6]), expected, rtol=0, atol=1e-6)
    loaded.save(tmp_path)  # in the present format
    assert json.loads((tmp_path / CONFIG).read_text())["format_version"] == 2
    again = DiffusionCalibratedClassifier.load(tmp_path)
    for n_steps in loaded.fitted_steps_:
        for inference in ("sampling", "moments", "mean"):
            for each in (loaded, again):
                each.set_params(n_steps=n_steps, inference=inference)
            np.testing.assert_array_equal(again.predict_proba(X), loaded.predict_proba(X))


@pytest.mark.parametrize("name", NAMES)
def test_the_upgraded_path_is_written_as_it_was_read(name):
    old = _state(name)
    state = upgrade(old)
    assert "format_version" not in state.config
    assert set(state.config) == {"params", "estimator_given_as", "classes", "wrapped", "fitted"}
    fitted = state.part("fitted")
    assert fitted.config["grids"] == old.config["grids"]
    assert fitted.config["seed"] == old.config["seed"]
    assert fitted.config["history"] == old.config["history"]
    n_path = sum(name.startswith(("path.", "calibration.")) for name in old.tensors)
    assert len(fitted.tensors) == n_path  # nothing is lost
    assert fitted.config["mean_kind"] == (
        "unified" if "transition" in old.config["path"] else "blockwise"
    )
    process = "attention" if name == "attention" else "states"
    assert fitted.config["covariance"]["process"] == process
    tensors = load(save({k: v.contiguous().clone() for k, v in fitted.tensors.items()}))
    read_again = State(json.loads(json.dumps(fitted.config)), tensors)
    path = FittedPath.from_state(read_again, _probed(old))
    again = path.to_state()
    assert json.loads(json.dumps(again.config)) == read_again.config
    assert again.tensors.keys() == read_again.tensors.keys()
    for key, value in again.tensors.items():
        assert torch.equal(value, read_again.tensors[key]), key


def _probed(state):
    """Return the table model of a saved state, cut."""
    params = state.config["wrapped"]["params"]
    architecture = {k: params[k] for k in ("width", "n_blocks", "n_heads", "dropout")}
    module = FTTransformer(2, [], len(state.config["classes"]["values"]), **architecture)
    module.load_state_dict(state.part("wrapped").part("module").tensors)
    numbers = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    return Backbone(module.eval(), blocks="blocks").probe({"numbers": numbers})


def test_groups_are_those_that_version_1_has_trained():
    assert upgrade(_state("shared_uneven")).config["fitted"]["mean"]["group"] == [0, 1, 1]
    old = _state("shared")
    intervals = [tuple(interval) for interval in old.config["path"]["intervals"]]
    params = old.config["params"]
    expected = shared_groups(intervals, old.config["n_blocks"], params["n_shared_blocks"])
    assert upgrade(old).config["fitted"]["mean"]["group"] == expected
    full = upgrade(_state("full_rank")).config["fitted"]["mean"]
    assert full["rank"] is None
    assert full["group"] == [0] * len(full["intervals"])


def test_groups_that_only_one_number_explains_need_no_parameter():
    # One group is all steps together, whatever the parameter was set to after the fit.
    old = _changed(_state("unified"), n_shared_blocks=2)
    group = upgrade(_state("unified")).config["fitted"]["mean"]["group"]
    assert set(group) == {0}
    assert upgrade(old).config["fitted"]["mean"]["group"] == group


def test_groups_that_cannot_be_told_are_refused(tmp_path):
    old = _changed(_state("shared_uneven"), n_shared_blocks=1)  # but the tensors have two
    message = "has 2 shared blocks for 3 steps, .* does not say which steps share one. Fit and save"
    with pytest.raises(ValueError, match=message):
        upgrade(old)
    shutil.copy(FORMAT_1 / "shared_uneven" / TENSORS, tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(old.config))
    with pytest.raises(ValueError, match=message):
        DiffusionCalibratedClassifier.load(tmp_path)


def test_no_groups_of_a_small_fit_are_read_wrongly():
    """Whatever version 1 wrote for up to 8 blocks is read as it was trained."""
    template = _state("shared_uneven").config
    for n_blocks in range(1, 9):
        for n_steps in range(1, n_blocks + 1):
            intervals = steps_of(time_grid(n_blocks, n_steps))
            for n_shared in range(1, n_blocks + 2):
                # as the constructor of version 1 numbered them
                thirds = [start * n_shared // n_blocks for start, _ in intervals]
                expected = [sorted(set(thirds)).index(third) for third in thirds]
                config = template | {
                    "n_blocks": n_blocks,
                    "params": template["params"] | {"n_shared_blocks": n_shared},
                    "path": {
                        "intervals": intervals,
                        "blocks": [],
                        "transition": {"rank": 1, "n_shared_blocks": max(expected) + 1},
                    },
                }
                state = upgrade(State(config | {"calibration": {}}, _no_covariance()))
                assert state.config["fitted"]["mean"]["group"] == expected


def _no_covariance():
    names = ("factors", "token_variances")
    return {f"path.covariance.{name}": torch.zeros(1) for name in names}


def test_values_of_removed_parameters_become_present_ones():
    old = _changed(_state("unified"), readout="finetune", covariance="residual")
    params = upgrade(old).config["params"]
    assert (params["readout"], params["covariance"]) == ("auto", "gp")
    kept = upgrade(_changed(old, readout="refit", covariance="attention")).config["params"]
    assert (kept["readout"], kept["covariance"]) == ("refit", "attention")
    assert upgrade(_changed(old, n_steps=[2, 1])).config["params"]["n_steps"] == [2, 1]
    others = old.config["params"].keys() - {"readout", "covariance"}
    assert {k: params[k] for k in others} == {k: old.config["params"][k] for k in others}


def test_reading_upgrades(tmp_path):
    for name in NAMES:
        state = read(FORMAT_1 / name)
        assert state.config["fitted"] == upgrade(_state(name)).config["fitted"]
