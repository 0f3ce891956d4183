"""The two files of a saved classifier: written whole or not at all, and read as they were."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sklearn_diffuq
from sklearn_diffuq._persistence import files
from sklearn_diffuq._persistence.files import (
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    TENSORS,
    check_writable,
    read,
    write,
)
from sklearn_diffuq._state import State


def _state(value=1.0):
    tensors = {
        "a.float": torch.full((2, 3), value),
        "a.double": torch.arange(4, dtype=torch.float64) / 3,
        "b.none": torch.zeros(0, 2),
        "b.scalar": torch.tensor(5),
    }
    return State({"value": value, "nested": {"list": [1, 2.5, "x", None, True]}}, tensors)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "a" / "b", _state(1 / 3))
    found = read(tmp_path / "a" / "b")
    assert {k: found.config[k] for k in ("value", "nested")} == _state(1 / 3).config
    assert found.config["format"] == FORMAT
    assert found.config["format_version"] == FORMAT_VERSION == 2
    assert found.config["package_version"] == sklearn_diffuq.__version__
    expected = _state(1 / 3).tensors
    assert found.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {CONFIG, TENSORS}


def test_tensors_may_share_memory_be_transposed_or_need_a_gradient(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "one": weight,
        "tied": weight,
        "turned": weight.T,
        "part": weight[:, 1:],
        "spread": torch.ones(()).expand(2, 2),
        "trained": torch.nn.Parameter(weight.clone()),
    }
    write(tmp_path, State({}, tensors))
    found = load_file(tmp_path / TENSORS)
    for name, value in tensors.items():
        assert torch.equal(found[name], value.detach())


def test_what_json_does_not_know_is_written_as_numbers_or_text(tmp_path):
    values = {"scalar": np.float64(0.1), "array": np.arange(2), "path": tmp_path}
    write(tmp_path, State(values))
    config = read(tmp_path).config
    assert (config["scalar"], config["array"], config["path"]) == (0.1, [0, 1], str(tmp_path))


@pytest.mark.parametrize("broken", ["save_file", "json", "replace"])
def test_a_failure_leaves_the_earlier_save(tmp_path, monkeypatch, broken):
    write(tmp_path, _state(1.0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("no space left")

    state = _state(2.0)
    if broken == "save_file":
        monkeypatch.setattr(files, "save_file", fail)
    elif broken == "replace":
        monkeypatch.setattr(files.os, "replace", fail)
    else:
        monkeypatch.setattr(files.json, "dumps", fail)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path, state)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    assert read(tmp_path).config["value"] == 1.0
    check_writable(tmp_path)  # what the failure left behind is no hindrance
    write(tmp_path, state)
    assert read(tmp_path).config["value"] == 2.0
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, TENSORS}


def test_where_may_be_written(tmp_path):
    check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    check_writable(tmp_path)
    write(tmp_path / "saved", _state())
    check_writable(tmp_path / "saved")


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "null", "{}", '{"format": "other"}', '"format"', "\udcff"]
)
def test_a_directory_of_other_files_is_not_written_to(tmp_path, text):
    (tmp_path / "notes.txt").write_text("mine")
    if text is not None:
        (tmp_path / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="not empty and holds no classifier saved before"):
        check_writable(tmp_path)


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; save needs a directory"):
        check_writable(tmp_path / "file")


@pytest.mark.parametrize("missing", [CONFIG, TENSORS])
def test_a_missing_file_is_named(tmp_path, missing):
    write(tmp_path, _state())
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {missing}.*save has written"):
        read(tmp_path)


@pytest.mark.parametrize("config", [{}, {"format": "other"}, [], None, "text"])
def test_files_of_another_kind_are_refused(tmp_path, config):
    write(tmp_path, _state())
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was not written by .*does not say format"):
        read(tmp_path)


@pytest.mark.parametrize("version", [0, 3, 99, "2", None, -1, 1.5, [1]])
def test_an_unknown_version_is_refused_with_what_is_read(tmp_path, version):
    write(tmp_path, _state())
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"format_version": version}))
    with pytest.raises(ValueError, match="has format version .* reads versions up to 2.*fit again"):
        read(tmp_path)


def test_an_earlier_version_is_upgraded(tmp_path, monkeypatch):
    write(tmp_path, _state())
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"format_version": 1}))
    monkeypatch.setattr(files, "upgrade", lambda state: State({"old": state.config["value"]}))
    assert read(tmp_path).config == {"old": 1.0}
