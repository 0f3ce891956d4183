"""The benchmark of speed measures what it says, and runs from end to end."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import speed
import speed_measures
import timing
import torch
from speed_cases import Size, make
from speed_measures import PlainLoop, encoded_once, fitted, units, with_noise
from speed_tables import pivot, sections
from store import COLUMNS, Store

NAME, SIZE = "FT-Transformer, 3 blocks", Size(96, 48, 32, seconds=0.0)


@pytest.fixture(scope="module")
def case():
    return make(NAME, SIZE, "cpu")


def test_operations_are_counted_with_those_of_gradients():
    x = torch.ones(3, requires_grad=True)
    assert timing.operations(lambda: x.detach().exp().exp()) == 3
    forward = timing.operations(lambda: x.exp().sum())
    assert timing.operations(lambda: x.exp().sum().backward()) > forward + 1


def test_the_fastest_run_counts_and_calls_take_turns(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing, "now", lambda: clock[0])

    def call(name, durations):
        def run():
            order.append(name)
            clock[0] += durations.pop(0)

        return run

    calls = {"a": call("a", [3.0, 1.0, 2.0]), "b": call("b", [1.0, 5.0, 4.0])}
    assert timing.best_seconds(calls, 0.0, at_least=3) == {"a": 1.0, "b": 1.0}
    assert order == ["a", "b"] * 3


def test_stages_add_up_their_calls(monkeypatch):
    clock = iter(range(100))
    owner = SimpleNamespace(work=lambda x: x + 1)
    work = owner.work
    with timing.stage_seconds({"work": (owner, "work")}, lambda: next(clock)) as seconds:
        assert owner.work(1) == 2
        assert owner.work(2) == 3
    assert seconds == {"work": 2}
    assert owner.work is work


def test_the_plain_loop_is_the_wrapped_model(case):
    loop = PlainLoop(case.wrapped, case.X)
    with torch.no_grad():
        proba = loop.logits(loop.batch(np.arange(len(case.X)))).softmax(-1)
    np.testing.assert_allclose(proba, case.wrapped.predict_proba(case.X), atol=1e-6)


def test_inputs_are_encoded_once_and_answers_do_not_change(case, monkeypatch):
    expected = case.wrapped.predict_proba(case.X)
    calls, encoder = [], type(case.wrapped._encoder)
    transform = encoder.transform
    monkeypatch.setattr(
        encoder, "transform", lambda self, *args: calls.append(1) or transform(self, *args)
    )
    with encoded_once():
        for _ in range(2):
            np.testing.assert_array_equal(case.wrapped.predict_proba(case.X), expected)
        case.wrapped.predict_proba(case.X[:1])
    assert len(calls) == 2


def test_every_kind_of_inference_has_noise(case):
    classifier = with_noise(fitted(case, transition="blockwise")[0])
    for inference in ("moments", "sampling"):
        uncertainty = classifier.set_params(inference=inference).predict_uncertainty(case.X)
        assert (uncertainty.epistemic > 0).all()


def test_a_unit_measures_fit_and_predictions(case, monkeypatch):
    monkeypatch.setattr(speed_measures, "INFERENCE", {
        name: speed_measures.INFERENCE[name] for name in ("mean", "moments", "4 paths")
    } | {"16 paths": {"inference": "sampling", "n_samples": 2}})  # fmt: skip
    found = units(SIZE, quick=True)
    assert list(found)[:3] == ["blockwise", "S = L/2", "S = L"]
    lines = {(part, metric): value for part, metric, value in found["S = L/2"](case)}
    assert all(value > 0 for value in lines.values())
    assert lines["fit", "whole"] > lines["fit", "one epoch"] * speed_measures.EPOCHS
    assert {("float32", "mean"), ("float32", "one row, moments")} <= lines.keys()
    lines = {line[:2]: line[2] for line in found["temperature"](case)}
    assert lines.keys() == {("fit", "whole"), ("float32", "predict"), ("float32", "one row")}
    untimed = units(dataclasses.replace(SIZE, is_fit_timed=False), quick=True)
    assert "S = L" not in untimed


def test_what_fails_or_has_no_time_is_named_and_the_rest_is_kept(tmp_path):
    store = Store(tmp_path)
    store.start("speed", {})

    def fails():
        raise torch.OutOfMemoryError("too little memory")

    work = {("a", "works"): lambda: [("float32", "mean", 2.0)], ("a", "fails"): fails}
    assert speed.compute(store, work, 1) == ["a: fails (OutOfMemoryError: too little memory)"]
    assert store.done() == {("a", 0, "works")}
    assert speed.compute(store, work, -1) == ["a: fails (no time)"]


def test_each_kind_of_results_has_a_table():
    lines = [
        ("BERT", "operations", "wrapped", "forward", 295.0),
        ("BERT", "operations", "S = L", "mean", 1.234),
        ("ViT", "blockwise", "float32", "mean", 0.987),
        ("ViT", "blockwise", "float32", "16 paths", 12.3),
        ("ViT", "SNGP", "float32", "predict", 1.0),
        ("cost", "rows", "linear", "twice", 1.0),
    ]
    results = pd.DataFrame(
        [(p, 0, m, part, 0, "raw", metric, v) for p, m, part, metric, v in lines], columns=COLUMNS
    )
    found = {section.title: section for section in sections(results)}
    assert list(found) == ["Prediction", "Growth with rows, steps and paths", "Operations"]
    assert found["Prediction"].table.to_numpy().tolist() == [
        ["ViT", "blockwise", "0.99", "12", ""],
        ["ViT", "SNGP", "", "", "1.00"],
    ]
    assert "295 (BERT)" in found["Operations"].text
    assert list(pivot(results[:2], "part").columns) == ["model", "method", "forward", "mean"]


@pytest.mark.slow
def test_the_operations_of_a_model_do_not_depend_on_the_number_of_rows(case):
    few = dataclasses.replace(case, train=tuple(part[:64] for part in case.train))
    first, second = (list(speed_measures.count_operations(c)) for c in (case, few))
    assert [line[:2] for line in first] == [line[:2] for line in second]
    training = [line for line in first if "forcing" in line[1]]
    assert training == [line for line in second if "forcing" in line[1]]


def test_threads_of_the_example_are_measured_in_a_process(monkeypatch):
    import speed_threads

    seen = {"wall": 2, "processor": 3, "stages": {"training": [1, 2]}, "pools": {"torch": 2}}
    command = [sys.executable, "-c", f"import json; print(json.dumps({seen}))"]
    run = speed_threads.subprocess.run
    monkeypatch.setattr(
        speed_threads.subprocess, "run", lambda given, **options: run(command, **options)
    )
    lines = list(speed_threads.measure_threads()["alone, one thread"]())
    assert ("threads", "whole", 2.0) in lines
    assert ("processor", "training", 2) in lines
    assert ("pools", "torch", 2) in lines
